"""Three policies in one update: which the ratio is taken against, and what corrects for the rest.

    π_sampler  recorded the rollout: another program, rounding, perhaps older weights
    π_old      the learner before the step's first update
    π_θ        the learner now

Their ratios multiply: π_θ / π_sampler = (π_θ / π_old) · (π_old / π_sampler).

CISPO, RLOO and REINFORCE use the ratio as a weight without gradient, cut from above.  That is
truncated importance sampling (Ionides 2008, J. Comp. Graph. Stat. 17) of the whole product, so one
ratio, to the recorded log-probabilities, covers both the mismatch and earlier updates of the step;
π_old plays no part, however many updates there are.

Objectives that clip keep a trust region, which must lie around the learner's own policy: noise of
the sampler would use it up.  Where a step makes several updates, their ratio is π_θ / π_old, and
min(π_old / π_sampler, cap) multiplies the loss: the decoupled objective of Hilton et al. 2021
(arXiv 2110.00641), its second factor truncated as Yao et al. 2025 do ("Your Efficient RL
Framework Secretly Brings You Off-Policy RL Training").  With one update per step π_old is π_θ; the
ratio is then π_θ / π_sampler, the mismatch itself, and tokens that it puts outside the clip range
do not teach.  GSPO's range of some 1e-4 is narrower than the rounding of a bfloat16 sampler, so
its ratio is to π_old always; its correction is per completion, as its ratio is.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from fst_jax.config import SlowSettings
from fst_jax.slow import kl
from fst_jax.slow.logprobs import score_tokens
from fst_jax.slow.objectives import completion_mean, gspo, recipe
from fst_jax.slow.packing import Batch
from fst_jax.slow.policy import policy


def ratio_to(settings: SlowSettings) -> Literal["sampler", "now", "before"]:
    """The policy that an update's ratio is taken against.

    sampler: what was recorded.
    now: π_old where the step has one update, θ itself without a gradient.
    before: π_old where it has several, to be scored before the first.
    """
    own, several = recipe(settings), settings.updates_per_step > 1
    if own.clips and several:
        return "before"
    return "now" if own.loss is gspo else "sampler"


def against(old: Float[Array, "R C"], rows: Batch, settings: SlowSettings) -> Batch:
    """`rows` with ratios to `old`, and min(π_old / π_sampler, cap) in the policy's weights.

    `old` is log π_old at the targets of a micro-batch, without a gradient.
    """
    log_ratio = old - rows.behaviour
    if recipe(settings).loss is gspo:
        log_ratio = completion_mean(log_ratio, rows.sample)
    ratio = jnp.exp(jnp.clip(log_ratio, -kl.LOG_RATIO_LIMIT, kl.LOG_RATIO_LIMIT))
    weight = rows.policy_weight * jnp.minimum(ratio, settings.importance_cap)
    return rows._replace(behaviour=old, policy_weight=weight)


def against_params(
    trained: Any, frozen: Any, batch: Batch, *, graphdef: Any, settings: SlowSettings, mesh: Mesh
) -> tuple[Float[Array, "M R C"], Float[Array, "M R C"], Float[Array, ""]]:
    """`behaviour` and `policy_weight` of a whole batch `against` these weights; `mismatch_k3`.

    The last is that of the sampler to them.  What is trained and frozen: see `policy.py`.
    """
    model = policy(trained, frozen, graphdef, settings)

    def micro_batch(rows: Batch) -> tuple[Array, Array, Array]:
        old = score_tokens(model, rows, settings.head_chunk, mesh).logprob
        mismatch = kl.estimators(rows.behaviour, old)["k3"]
        moved = against(old, rows, settings)
        return old, moved.policy_weight, jnp.sum(rows.token_weight * mismatch)

    old, weight, mismatch = jax.lax.map(micro_batch, batch)
    return old, weight, jnp.sum(mismatch)
