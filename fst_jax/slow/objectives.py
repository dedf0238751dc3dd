"""Policy-gradient objectives as pure functions of per-token log-probabilities.

Each takes token weights that already hold mask and denominator (see
`packing.py`), so that a sum over any split of the batch is the same loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from fst_jax.slow.kl import LOG_RATIO_LIMIT


def cispo(
    logprob: Float[Array, "*N"],
    behaviour: Float[Array, "*N"],
    advantage: Float[Array, "*N"],
    weight: Float[Array, "*N"],
    clip_threshold: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "*N"]]]:
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


Objective = Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, "*N"]]]]
OBJECTIVES: dict[str, Objective] = {"cispo": cispo}
