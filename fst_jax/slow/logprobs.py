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
from jaxtyping import Float

from fst_jax.models.decoder import Decoder
from fst_jax.models.row_attention import Visible, row_attention
from fst_jax.parallel.sharding import batch_shardings, constrain, put
from fst_jax.slow.packing import Batch


class TokenScores(NamedTuple):
    """Per target token, float32."""

    logprob: Float[Array, "R C"]
    entropy: Float[Array, "R C"]  # of the full softmax at the rollout's temperature; no gradient


def completion_states(model: Decoder, rows: Batch, mesh: Mesh) -> Float[Array, "R C D"]:
    """The hidden state that predicts each target of a micro-batch.

    `rows` is a `Batch` without its leading axis M.
    """
    visible = Visible(rows.segments, rows.parents, rows.layout)

    def attend(query: Array, key: Array, value: Array, _: Any) -> tuple[Array, None]:
        return row_attention(query, key, value, visible, mesh), None

    def place(x: Array) -> Array:
        return constrain(x, "activations/hidden", mesh)

    hidden, _ = model(rows.tokens, rows.positions, attend, place=place)
    states = jnp.take_along_axis(hidden, rows.predictor[:, :, None], axis=1)
    return place(states)


def score_tokens(model: Decoder, rows: Batch, head_chunk: int, mesh: Mesh) -> TokenScores:
    """log_softmax(logits / temperature) at the targets of a micro-batch, and the entropy."""

    def per_token(states: Array, target: Array, temperature: Array) -> tuple[Array, Array]:
        logits = model.logits(states) / temperature[..., None]
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        logprobs = jax.lax.stop_gradient(logits - normaliser[..., None])
        return chosen - normaliser, -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)

    tokens = (completion_states(model, rows, mesh), rows.target, rows.temperature)
    return TokenScores(*in_chunks(per_token, tokens, head_chunk, mesh))


def batch_logprobs(
    model: Decoder, batch: Batch, head_chunk: int, mesh: Mesh
) -> Float[Array, "M R C"]:
    """The `logprob` of `score_tokens` for all micro-batches."""
    return jax.lax.map(lambda rows: score_tokens(model, rows, head_chunk, mesh).logprob, batch)


def mean_gap(params: Any, batch: Batch, *, graphdef: Any, mesh: Mesh, head_chunk: int) -> float:
    """Mean |behaviour log-probability - log-probability under `params`| over a batch, in nats."""
    placed = put(batch, batch_shardings(batch, mesh))
    return float(_mean_gap(params, placed, graphdef=graphdef, head_chunk=head_chunk, mesh=mesh))


@partial(jax.jit, static_argnames=("graphdef", "head_chunk", "mesh"))
def _mean_gap(params: Any, batch: Batch, *, graphdef: Any, head_chunk: int, mesh: Mesh) -> Array:
    model: Decoder = nnx.merge(graphdef, params)

    def micro_batch(total: Array, rows: Batch) -> tuple[Array, None]:
        gap = jnp.abs(score_tokens(model, rows, head_chunk, mesh).logprob - rows.behaviour)
        return total + jnp.sum(rows.token_weight * gap), None

    return jax.lax.scan(micro_batch, jnp.zeros((), jnp.float32), batch)[0]


def in_chunks(
    per_token: Callable[..., Any], tokens: tuple[Array, ...], chunk: int, mesh: Mesh
) -> Any:
    """Apply `per_token` to arrays [R, C, …] in slices of about `chunk` tokens, with remat.

    A slice takes as many targets of every row, and of every part of it that the context axis
    makes, so that all devices work on each.  Padding tokens are ones, a harmless target and
    temperature.
    """
    rows, count = tokens[0].shape[:2]
    parts = mesh.shape["context"] if count % mesh.shape["context"] == 0 else 1
    slices = -(-count // max(parts, chunk // rows))
    width = -(-count // (parts * slices))

    def split(x: Array) -> Array:
        x = x.reshape(rows, parts, -1, *x.shape[2:])
        widths = ((0, 0), (0, 0), (0, slices * width - x.shape[2])) + ((0, 0),) * (x.ndim - 3)
        x = jnp.pad(x, widths, constant_values=1).reshape(rows, parts, slices, width, *x.shape[3:])
        return jnp.moveaxis(x, 2, 0).reshape(slices, rows, parts * width, *x.shape[4:])

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x.reshape(slices, rows, parts, width), 0, 2)
        return x.reshape(rows, parts, -1)[:, :, : count // parts].reshape(rows, count)

    @jax.checkpoint
    def step(x: tuple[Array, ...]) -> Any:
        kinds = {2: "targets", 3: "hidden"}
        x = tuple(constrain(a, f"activations/{kinds[a.ndim]}", mesh) for a in x)
        if parts == 1:  # one axis of tokens: a sixth less time on the CPU, and rows stay split
            x = tuple(a.reshape(-1, *a.shape[2:]) for a in x)
        return per_token(*x)

    return jax.tree.map(join, jax.lax.map(step, tuple(map(split, tokens))))
