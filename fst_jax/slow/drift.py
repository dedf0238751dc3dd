"""How far θ has moved from the base, in the measure of the paper's drift figure.

KL(π_θ ‖ π_base) per token on held-out problems.  Sampled estimators (`kl.py`)
are what a training step can afford; here the sum over the whole vocabulary is
exact at every sampled position, and only the positions are sampled.  Both
policies are taken at temperature 1.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from fst_jax.parallel.sharding import batch_sharding
from fst_jax.slow.logprobs import completion_states, in_chunks
from fst_jax.slow.packing import Batch


def drift(
    params: Any, reference: Any, batch: Batch, *, graphdef: Any, mesh: Mesh, head_chunk: int
) -> dict[str, float]:
    """{kl_to_base, entropy}: means over the completion tokens of `batch`, in nats."""
    placed = jax.device_put(batch, batch_sharding(mesh, axis=1))
    measured = _drift(params, reference, placed, graphdef=graphdef, head_chunk=head_chunk)
    return {name: float(value) for name, value in jax.device_get(measured).items()}


@partial(jax.jit, static_argnames=("graphdef", "head_chunk"))
def _drift(
    params: Any, reference: Any, batch: Batch, *, graphdef: Any, head_chunk: int
) -> dict[str, Float[Array, ""]]:
    model, base = nnx.merge(graphdef, params), nnx.merge(graphdef, reference)

    def per_token(states: Array, base_states: Array) -> tuple[Array, Array]:
        logprobs = jax.nn.log_softmax(model.logits(states), axis=-1)
        base_logprobs = jax.nn.log_softmax(base.logits(base_states), axis=-1)
        probabilities = jnp.exp(logprobs)
        kl = jnp.sum(probabilities * (logprobs - base_logprobs), axis=-1)
        return kl, -jnp.sum(probabilities * logprobs, axis=-1)

    def micro_batch(total: tuple[Array, Array], rows: Batch) -> tuple[tuple[Array, Array], None]:
        states = completion_states(model, rows), completion_states(base, rows)
        kl, entropy = in_chunks(per_token, states, head_chunk)
        weight = rows.token_weight.reshape(-1)
        return (total[0] + jnp.sum(weight * kl), total[1] + jnp.sum(weight * entropy)), None

    zero = jnp.zeros((), jnp.float32)
    (kl, entropy), _ = jax.lax.scan(micro_batch, (zero, zero), batch)
    return {"kl_to_base": kl, "entropy": entropy}
