"""log π_θ of completion tokens, without ever holding [B, T, V] logits.

Hidden states of prompt tokens are dropped before the vocabulary head; the rest
go through it in chunks, each recomputed in the backward pass, so that the
head's memory is chunk × vocabulary, forward and backward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from fst_jax.models.attention import attention
from fst_jax.models.decoder import Decoder
from fst_jax.parallel.sharding import batch_sharding
from fst_jax.slow.packing import Batch


class TokenScores(NamedTuple):
    """Per target token, float32."""

    logprob: Float[Array, "R C"]
    entropy: Float[Array, "R C"]  # of the full softmax at the rollout's temperature; no gradient


def row_mask(segments: Int[Array, "R T"]) -> Bool[Array, "R T T"]:
    """Causal within the row; a completion sees the context and itself alone."""
    index = jnp.arange(segments.shape[1])
    causal = index[:, None] >= index[None, :]
    query, key = segments[:, :, None], segments[:, None, :]
    return causal & (key != 0) & ((key == 1) | (key == query))


def completion_states(model: Decoder, rows: Batch) -> Float[Array, "N D"]:
    """The hidden state that predicts each target of a micro-batch, N = R · C.

    `rows` is a `Batch` without its leading axis M.
    """
    mask = row_mask(rows.segments)
    hidden, _ = model(
        rows.tokens, rows.positions, lambda q, k, v, _: (attention(q, k, v, mask), None)
    )
    states = jnp.take_along_axis(hidden, rows.predictor[:, :, None], axis=1)
    return states.reshape(-1, states.shape[-1])


def score_tokens(model: Decoder, rows: Batch, head_chunk: int) -> TokenScores:
    """log_softmax(logits / temperature) at the targets of a micro-batch, and the entropy."""

    def per_token(states: Array, target: Array, temperature: Array) -> tuple[Array, Array]:
        logits = model.logits(states) / temperature[:, None]
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        logprobs = jax.lax.stop_gradient(logits - normaliser[:, None])
        return chosen - normaliser, -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)

    tokens = (completion_states(model, rows), rows.target.reshape(-1), rows.temperature.reshape(-1))
    scored = in_chunks(per_token, tokens, head_chunk)
    return TokenScores(*(x.reshape(rows.target.shape) for x in scored))


def mean_gap(params: Any, batch: Batch, *, graphdef: Any, mesh: Mesh, head_chunk: int) -> float:
    """Mean |behaviour log-probability - log-probability under `params`| over a batch, in nats."""
    placed = jax.device_put(batch, batch_sharding(mesh, axis=1))
    return float(_mean_gap(params, placed, graphdef=graphdef, head_chunk=head_chunk))


@partial(jax.jit, static_argnames=("graphdef", "head_chunk"))
def _mean_gap(params: Any, batch: Batch, *, graphdef: Any, head_chunk: int) -> Array:
    model: Decoder = nnx.merge(graphdef, params)

    def micro_batch(total: Array, rows: Batch) -> tuple[Array, None]:
        gap = jnp.abs(score_tokens(model, rows, head_chunk).logprob - rows.behaviour)
        return total + jnp.sum(rows.token_weight * gap), None

    return jax.lax.scan(micro_batch, jnp.zeros((), jnp.float32), batch)[0]


def in_chunks(per_token: Callable[..., Any], tokens: tuple[Array, ...], chunk: int) -> Any:
    """Apply `per_token` to slices of at most `chunk` tokens along axis 0, with remat.

    Padding tokens are ones, a harmless target and temperature.
    """
    count = tokens[0].shape[0]
    chunk = min(chunk, count)

    def split(x: Array) -> Array:
        widths = ((0, -count % chunk),) + ((0, 0),) * (x.ndim - 1)
        return jnp.pad(x, widths, constant_values=1).reshape(-1, chunk, *x.shape[1:])

    step = jax.checkpoint(lambda x: per_token(*x))
    results = jax.lax.map(step, tuple(split(x) for x in tokens))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], results)
