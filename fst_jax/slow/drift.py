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

from fst_jax.parallel.sharding import batch_shardings, put
from fst_jax.slow.logprobs import completion_states, in_chunks
from fst_jax.slow.packing import Batch


def drift(
    params: Any, reference: Any, batch: Batch, *, graphdef: Any, mesh: Mesh, head_chunk: int
) -> dict[str, float]:
    """{kl_to_base, entropy}: means over the completion tokens of `batch`, in nats.

    Where `params` are the reference itself, the KL is 0 and one forward pass is saved.
    """
    other = None if reference is params else reference
    placed = put(batch, batch_shardings(batch, mesh))
    measured = _drift(params, other, placed, graphdef=graphdef, head_chunk=head_chunk, mesh=mesh)
    return {name: float(value) for name, value in jax.device_get(measured).items()}


@partial(jax.jit, static_argnames=("graphdef", "head_chunk", "mesh"))
def _drift(
    params: Any, reference: Any, batch: Batch, *, graphdef: Any, head_chunk: int, mesh: Mesh
) -> dict[str, Float[Array, ""]]:
    policies = [nnx.merge(graphdef, held) for held in (params, reference) if held is not None]

    def per_token(*states: Array) -> tuple[Array, Array]:
        logprobs, *base = (
            jax.nn.log_softmax(policy.logits(own), axis=-1)
            for policy, own in zip(policies, states, strict=True)
        )
        probabilities = jnp.exp(logprobs)
        kl = jnp.sum(probabilities * (logprobs - (base[0] if base else logprobs)), axis=-1)
        return kl, -jnp.sum(probabilities * logprobs, axis=-1)

    def micro_batch(total: tuple[Array, Array], rows: Batch) -> tuple[tuple[Array, Array], None]:
        states = tuple(completion_states(policy, rows, mesh) for policy in policies)
        kl, entropy = in_chunks(per_token, states, head_chunk, mesh)
        weight = rows.token_weight
        return (total[0] + jnp.sum(weight * kl), total[1] + jnp.sum(weight * entropy)), None

    zero = jnp.zeros((), jnp.float32)
    (kl, entropy), _ = jax.lax.scan(micro_batch, (zero, zero), batch)
    return {"kl_to_base": kl, "entropy": entropy}
