"""KL in the reward: each rollout pays for how far it is from the reference.

    r ← r − β · Σ_t log π_θ(y_t) − log π_ref(y_t)

The sum is k1 over the whole completion.  As a reward it has, through the policy gradient, the
gradient of KL(π_θ ‖ π_ref) of completions, earlier tokens' share in what follows included, which
an estimator in the loss, taken token by token, leaves out; k2 and k3 have not, since
their own gradients are not zero on average (Tang and Munos 2025, arXiv 2506.09477).
Source: Ouyang et al. 2022, arXiv 2203.02155, eq. 2; RLOO, arXiv 2402.14740, sec. 2.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from fst_jax.config import SlowSettings
from fst_jax.parallel.sharding import batch_shardings, put, replicated
from fst_jax.slow import kl
from fst_jax.slow.logprobs import batch_logprobs
from fst_jax.slow.packing import Batch, Pair, sides
from fst_jax.slow.policy import policy, reference_logprobs


def log_ratios(
    trained: Any,
    frozen: Any,
    batch: Batch | Pair,
    *,
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> Float[np.ndarray, "N"]:
    """log π_θ(y) − log π_ref(y) of each of the N samples that `batch` was packed from, in nats.

    At the temperature of each rollout.  What is trained and frozen: see `policy.py`.
    """
    placed, fixed = put(batch, batch_shardings(batch, mesh)), (graphdef, settings, mesh)
    per_token = np.asarray(_log_ratios(trained, frozen, placed, *fixed))
    return np.bincount(sides(batch).own.sample.ravel(), per_token.ravel())[1:]


@partial(jax.jit, static_argnames=("graphdef", "settings", "mesh"))
def _log_ratios(
    trained: Any,
    frozen: Any,
    batch: Batch | Pair,
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> Float[Array, "M R C"]:
    model, pair = policy(trained, frozen, graphdef, settings), sides(batch)
    own = batch_logprobs(model, pair.own, settings.head_chunk, mesh)
    other = reference_logprobs(frozen, pair.frozen, graphdef, settings, mesh)
    return jax.lax.with_sharding_constraint(kl.estimators(own, other)["k1"], replicated(mesh))
