"""Policy-gradient objectives as pure functions of per-token log-probabilities.

Each takes token weights that already hold mask and denominator (see
`packing.py`), so that a sum over any split of the batch is the same loss.
Objectives that go by different names often share one of four losses and differ
in their denominators, their advantages or their clip range: `RECIPES` says so
for each of them.

In all of them `behaviour` is the log-probability under the policy that the
ratio ρ is taken against.  Which policy that is: `importance.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from fst_jax.config import Aggregation, Baseline, SlowSettings
from fst_jax.slow.kl import LOG_RATIO_LIMIT
from fst_jax.slow.packing import Batch

Loss = tuple[Float[Array, ""], dict[str, Float[Array, "*N"]]]


def cispo(
    logprob: Float[Array, "*N"],
    behaviour: Float[Array, "*N"],
    advantage: Float[Array, "*N"],
    weight: Float[Array, "*N"],
    clip_threshold: float,
) -> Loss:
    """CISPO: −Σ weight · sg(min(ρ, τ)) · A · log π_θ,  ρ = π_θ / π_behaviour.

    The importance ratio is cut at τ = `clip_threshold` and carries no gradient,
    so every token keeps one: d loss / d logprob = −weight · min(ρ, τ) · A.
    Source: MiniMax-M1, arXiv 2506.13585, eq. 4; the paper's section 3 with
    clip_low 1.0 (no lower bound) and clip_high 3.0.

    Args:
      logprob: log π_θ of each sampled token at the rollout's temperature.
      behaviour: log-probability that the sampler recorded for it.
      advantage: advantage of the token's rollout.
      weight: mask / denominator; 0 for padding.

    Returns:
      The loss, and per token {ratio, clipped} for the metrics.
    """
    log_ratio = jax.lax.stop_gradient(logprob) - behaviour
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    loss = -jnp.sum(weight * jnp.minimum(ratio, clip_threshold) * advantage * logprob)
    return loss, {"ratio": ratio, "clipped": (ratio > clip_threshold).astype(jnp.float32)}


def reinforce(
    logprob: Float[Array, "*N"],
    behaviour: Float[Array, "*N"],
    advantage: Float[Array, "*N"],
    weight: Float[Array, "*N"],
    importance_cap: float,
) -> Loss:
    """REINFORCE: −Σ weight · sg(min(ρ, cap)) · A · log π_θ; on-policy, ρ = 1.

    Source: R. J. Williams 1992, Machine Learning 8, sec. 4, for ρ = 1.  Where the sampler is not
    quite π_θ, each token is weighted by the truncated ratio (Ionides 2008, J. Comp. Graph. Stat.
    17).  So corrected it is the same sum as CISPO's, whose τ is an importance cap by another name:
    what tells the two apart are advantages and denominators.

    Arguments and result are those of `cispo`.
    """
    return cispo(logprob, behaviour, advantage, weight, importance_cap)


def ppo_clip(
    logprob: Float[Array, "*N"],
    behaviour: Float[Array, "*N"],
    advantage: Float[Array, "*N"],
    weight: Float[Array, "*N"],
    clip_low: float,
    clip_high: float,
) -> Loss:
    """PPO's clipped surrogate: −Σ weight · min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A).

    A token whose ratio has left the range in the direction of its advantage has no gradient; all
    others have d loss / d logprob = −weight · ρ · A.
    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7; per token and with group advantages,
    GRPO: Shao et al. 2024, arXiv 2402.03300, eq. 3; with ε_high > ε_low, DAPO: Yu et al. 2025,
    arXiv 2503.14476, eq. 8.

    Arguments and result are those of `cispo`; `clip_low` and `clip_high` are ε_low and ε_high.
    """
    log_ratio = jnp.clip(logprob - behaviour, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return _clipped(jnp.exp(log_ratio), advantage, weight, clip_low, clip_high)


def gspo(
    logprob: Float[Array, "R C"],
    behaviour: Float[Array, "R C"],
    advantage: Float[Array, "R C"],
    weight: Float[Array, "R C"],
    sample: Int[Array, "R C"],
    clip_low: float,
    clip_high: float,
) -> Loss:
    """GSPO: `ppo_clip` with one ratio a completion, s = (π_θ(y|x) / π_behaviour(y|x))^(1/|y|).

    With W the sum of a completion's weights, an unclipped completion has the gradient
    d loss / d logprob = −W / |y| · s · A at each of its tokens.
    Source: Zheng et al. 2025, arXiv 2507.18071, eq. 5 to 7, where W = 1 / G.

    Arguments and result are those of `cispo`; `sample` is as in `Batch`: it tells which tokens of
    a row belong to one completion.
    """
    log_ratio = completion_mean(logprob - behaviour, sample)
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    return _clipped(ratio, advantage, weight, clip_low, clip_high)


def _clipped(ratio: Array, advantage: Array, weight: Array, low: float, high: float) -> Loss:
    """min(ρ A, clip(ρ) A): from above where A > 0, from below where A < 0."""
    gains = advantage > 0
    bounded = jnp.where(gains, jnp.minimum(ratio, 1.0 + high), jnp.maximum(ratio, 1.0 - low))
    outside = jnp.where(gains, ratio > 1.0 + high, (ratio < 1.0 - low) & (advantage < 0))
    return -jnp.sum(weight * bounded * advantage), {
        "ratio": jax.lax.stop_gradient(ratio),
        "clipped": outside.astype(jnp.float32),
    }


def completion_mean(values: Float[Array, "R C"], sample: Int[Array, "R C"]) -> Float[Array, "R C"]:
    """At every token, the mean of `values` over its completion; 0 at padding."""
    # A row's completions follow one another: number them within the row.
    begins = jnp.diff(sample, axis=1, prepend=0) != 0
    place = jnp.cumsum(begins, axis=1)

    def of_row(own: Array, present: Array, place: Array) -> Array:
        count = own.shape[0] + 1
        sums, sizes = (
            jax.ops.segment_sum(x, place, num_segments=count, indices_are_sorted=True)
            for x in (jnp.where(present, own, 0.0), present.astype(own.dtype))
        )
        return jnp.where(present, (sums / jnp.maximum(sizes, 1.0))[place], 0.0)

    return jax.vmap(of_row)(values, sample > 0, place)


@dataclass(frozen=True)
class Recipe:
    """What an objective's name stands for.  Settings of the same name, where given, win."""

    loss: Callable[..., Loss]
    aggregation: Aggregation  # denominators, see `packing.token_weights`
    baseline: Baseline = "problem"
    normalize_std: bool = True
    clip_low: float = 1.0  # 1 and infinity: no clip range
    clip_high: float = math.inf
    leave_one_out: bool = False  # a rollout's baseline does not hold its own reward

    @property
    def clips(self) -> bool:
        """Whether it stays in a trust region around the policy that its ratio is taken against."""
        return self.clip_low < 1.0


# Dr.GRPO: Liu et al. 2025, arXiv 2503.20783.  RLOO: Ahmadian et al. 2024, arXiv
# 2402.14740 (Kool et al. 2019), whose action is the whole completion: its log-probability
# is a sum over tokens.  REINFORCE's baseline is the mean reward of the step: with that of the
# group it would be RLOO times (G − 1) / G.  Clip ranges: PPO and DAPO as in their papers, sec. 6.1
# and 4.1; GSPO its sec. 5.1.
RECIPES: dict[str, Recipe] = {
    "cispo": Recipe(cispo, "problem"),
    "grpo": Recipe(ppo_clip, "completion", clip_low=0.2, clip_high=0.2),
    "dapo": Recipe(ppo_clip, "token", clip_low=0.2, clip_high=0.28),
    "dr_grpo": Recipe(ppo_clip, "constant", normalize_std=False, clip_low=0.2, clip_high=0.2),
    "gspo": Recipe(gspo, "completion", clip_low=3e-4, clip_high=4e-4),
    "rloo": Recipe(reinforce, "completion_sum", normalize_std=False, leave_one_out=True),
    "reinforce": Recipe(reinforce, "completion_sum", "batch", normalize_std=False),
}


def recipe(settings: SlowSettings) -> Recipe:
    """The objective of these settings, with what they say themselves in place of its own.

    Where the KL is part of the reward, rewards are not divided by their deviation unless asked: a
    group of equal rewards would be ranked by its KL alone, at full scale.
    """
    own = RECIPES[settings.objective]
    if settings.kl_placement == "reward":
        own = replace(own, normalize_std=False)
    open_fields = {f.name for f in fields(Recipe)} & {f.name for f in fields(SlowSettings)}
    given = {name: getattr(settings, name) for name in open_fields}
    return replace(own, **{name: value for name, value in given.items() if value is not None})


def policy_loss(logprob: Float[Array, "R C"], rows: Batch, settings: SlowSettings) -> Loss:
    """A micro-batch's share of the objective's loss; `rows` is a `Batch` without its axis M."""
    own = recipe(settings)
    tokens = (logprob, rows.behaviour, rows.advantage, rows.policy_weight)
    if own.loss is cispo:
        return cispo(*tokens, settings.clip_threshold)
    if own.loss is reinforce:
        return reinforce(*tokens, settings.importance_cap)
    if own.loss is gspo:
        return gspo(*tokens, rows.sample, own.clip_low, own.clip_high)
    return ppo_clip(*tokens, own.clip_low, own.clip_high)
