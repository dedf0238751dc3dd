"""FST-distill: θ learns to answer without the evolved prompts as it does under them.

    loss(θ) = Σ_t weight · KL(π_θ(· | x, y_<t) ‖ π_teacher(· | x, φ, y_<t)),   y ~ π_θ(· | x)

The paper's eq. 8.  The student samples without φ, so that it learns at the prefixes that it meets;
the teacher is the same model, frozen, with φ in its context.  The KL is exact at every sampled
position, a sum over the whole vocabulary, and its gradient goes through the student alone: not
through the teacher, nor through what was sampled.  Both are taken at the temperature of the
rollout.

Where the paper is silent: each of a problem's G completions has one of the K prompts on its
teacher's side, G/K each, as rollouts have them in RL; so the expected loss is the mean over Φ.
Denominators are those of `slow.aggregation`, as for RL (eq. 8 writes the sum: `completion_sum`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from fst_jax.config import SlowSettings
from fst_jax.slow import kl
from fst_jax.slow.logprobs import completion_states, in_chunks
from fst_jax.slow.packing import Batch
from fst_jax.slow.policy import policy


def reverse_kl(student: Float[Array, "*N V"], teacher: Float[Array, "*N V"]) -> Float[Array, "*N"]:
    """KL(student ‖ teacher) of log-probabilities over the vocabulary, in nats."""
    return jnp.sum(jnp.exp(student) * (student - teacher), axis=-1)


def micro_batch_loss(
    params: Any,
    frozen: Any,
    student: Batch,
    teacher: Batch,
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """A micro-batch's share of the loss and of every metric; batches are without their axis M.

    What is trained and what is frozen, which is the teacher: see `policy.py`.
    """
    policies = policy(params, frozen, graphdef, settings), nnx.merge(graphdef, frozen)
    states = [
        completion_states(own, rows, mesh)
        for own, rows in zip(policies, (student, teacher), strict=True)
    ]

    def per_token(
        own: Array, prompted: Array, target: Array, temperature: Array
    ) -> tuple[Array, Array, Array]:
        ours, theirs = (
            jax.nn.log_softmax(model.logits(hidden) / temperature[..., None], axis=-1)
            for model, hidden in zip(policies, (own, prompted), strict=True)
        )
        held = jax.lax.stop_gradient(ours)
        chosen = jnp.take_along_axis(held, target[..., None], axis=-1)[..., 0]
        return reverse_kl(ours, theirs), -jnp.sum(jnp.exp(held) * held, axis=-1), chosen

    tokens = (*states, student.target, student.temperature)
    divergence, entropy, chosen = in_chunks(per_token, tokens, settings.head_chunk, mesh)
    loss = jnp.sum(student.kl_weight * divergence)
    mismatch = kl.estimators(student.behaviour, chosen)["k3"]
    per_target = {"distill_kl": divergence, "entropy": entropy, "mismatch_k3": mismatch}
    means = {name: jnp.sum(student.token_weight * x) for name, x in per_target.items()}
    return loss, jax.tree.map(jax.lax.stop_gradient, {"loss": loss, **means})
