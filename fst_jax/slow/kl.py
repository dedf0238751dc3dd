"""Per-token estimators of KL(π_θ ‖ π_ref) from samples of π_θ.

With log r = log π_ref(y) − log π_θ(y) (J. Schulman, "Approximating KL
divergence", 2020):

    k1 = −log r            unbiased, high variance, may be negative
    k2 = (log r)² / 2      biased, low variance
    k3 = r − 1 − log r     unbiased, low variance, never negative

log r is clamped in float32 before the exponential, since one rare token would
otherwise overflow k3.

What a loss does is decided by its gradient, not by its value.  Over samples of
π_θ the gradient of k2 is that of KL(π_θ ‖ π_ref) on average; that of k1 is zero
and that of k3 belongs to KL(π_ref ‖ π_θ) (Tang and Munos 2025, arXiv
2506.09477).  "k3+" has the value of k3 and the gradient of k2.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

LOG_RATIO_LIMIT = 20.0


def estimators(
    logprob: Float[Array, "*N"], reference: Float[Array, "*N"]
) -> dict[str, Float[Array, "*N"]]:
    """All three estimators, float32, differentiable in `logprob`."""
    log_ratio = reference.astype(jnp.float32) - logprob.astype(jnp.float32)
    log_ratio = jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return {
        "k1": -log_ratio,
        "k2": 0.5 * jnp.square(log_ratio),
        "k3": jnp.expm1(log_ratio) - log_ratio,
    }


def regularizer(
    name: str, logprob: Float[Array, "*N"], reference: Float[Array, "*N"]
) -> Float[Array, "*N"]:
    """The estimator that a loss takes: k1, k2, k3, or k3+, straight through from k3 to k2."""
    every = estimators(logprob, reference)
    if name == "k3+":
        return every["k2"] + jax.lax.stop_gradient(every["k3"] - every["k2"])
    return every[name]
