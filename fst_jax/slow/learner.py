"""The slow weights' update: one jitted, donated step over a packed batch.

    loss(θ) = objective(θ) + β · Σ weight · KL estimator(π_θ, π_ref)

The reference is the base model under the same prompt φ.  The policy term leaves
out groups without variance, in its denominator too; the KL regularizer covers
every sampled token, so that a policy which earns nothing still returns to the
base.  The reference is scored first, then gradients accumulate over
micro-batches in a `lax.scan`; a step whose gradient is not finite changes
nothing and is counted.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from fst_jax.config import SlowSettings
from fst_jax.models.decoder import Decoder
from fst_jax.models.lora import Adapters
from fst_jax.parallel.sharding import batch_shardings, in_host_memory, put, replicated, shardings
from fst_jax.slow import kl
from fst_jax.slow.logprobs import score_tokens
from fst_jax.slow.objectives import OBJECTIVES
from fst_jax.slow.optimizer import learning_rate, make_optimizer
from fst_jax.slow.packing import Batch
from fst_jax.slow.policy import policy, reference_logprobs, starting_point, whole_weights

Params = Any  # nnx.State of the decoder's parameters; what is trained may be adapters instead
Metrics = dict[str, Float[Array, ""]]


class LearnerState(NamedTuple):
    """What a step reads and replaces; its buffers are donated."""

    params: Params  # what is trained: the weights, or adapters to them
    optimizer: Any
    step: Any  # int32 scalar, updates applied


def micro_batch_loss(
    params: Params,
    frozen: Params,
    rows: Batch,
    reference_logprob: Float[Array, "R C"],
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> tuple[Float[Array, ""], Metrics]:
    """This micro-batch's share of the loss and of every metric (shares add up)."""
    model = policy(params, frozen, graphdef, settings)
    scores = score_tokens(model, rows, settings.head_chunk, mesh)
    policy_loss, tokens = OBJECTIVES[settings.objective](
        scores.logprob, rows.behaviour, rows.advantage, rows.policy_weight, settings.clip_threshold
    )
    to_reference = kl.estimators(scores.logprob, reference_logprob)
    regularizer = jnp.sum(rows.kl_weight * to_reference[settings.kl_estimator])
    loss = policy_loss + settings.kl_coefficient * regularizer
    mismatch = kl.estimators(rows.behaviour, jax.lax.stop_gradient(scores.logprob))["k3"]

    def mean(x: Array) -> Array:
        return jnp.sum(rows.token_weight * x)

    present = rows.token_weight > 0
    metrics = {
        "loss": loss,
        **{f"kl_{name}": mean(value) for name, value in to_reference.items()},
        "entropy": mean(scores.entropy),
        "clip_fraction": mean(tokens["clipped"]),
        "mismatch_k3": mean(mismatch),
        "ratio_max": jnp.max(jnp.where(present, tokens["ratio"], 0.0)),
    }
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)


def _add(total: Metrics, share: Metrics) -> Metrics:
    return {
        name: jnp.maximum(value, share[name]) if name.endswith("_max") else value + share[name]
        for name, value in total.items()
    }


def train_step(
    state: LearnerState,
    frozen: Params,
    batch: Batch,
    *,
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> tuple[LearnerState, Metrics]:
    """One update of θ; pure.  `batch` holds all micro-batches (leading axis M).

    What is trained and what is frozen: see `policy.py`.
    """
    scored = (batch, reference_logprobs(frozen, batch, graphdef, settings, mesh))
    gradient_of = jax.grad(
        partial(micro_batch_loss, graphdef=graphdef, settings=settings, mesh=mesh), has_aux=True
    )

    def accumulate(carry: tuple[Params, Metrics], rows: tuple[Batch, Array]) -> tuple[Any, None]:
        gradients, metrics = gradient_of(state.params, frozen, *rows)
        return (jax.tree.map(jnp.add, carry[0], gradients), _add(carry[1], metrics)), None

    shapes = jax.eval_shape(
        gradient_of, state.params, frozen, *jax.tree.map(lambda x: x[0], scored)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (gradients, metrics), _ = jax.lax.scan(accumulate, zeros, scored)

    updates, optimizer = make_optimizer(settings).update(gradients, state.optimizer, state.params)
    updated = LearnerState(optax.apply_updates(state.params, updates), optimizer, state.step + 1)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
    metrics |= {
        "grad_norm": norm,
        "lr": learning_rate(settings)(state.step),
        "nonfinite_steps": 1.0 - finite.astype(jnp.float32),
    }
    return kept, metrics


def state_shardings(params: Params, settings: SlowSettings, mesh: Mesh) -> LearnerState:
    """How each array of the state is split over the mesh; `params` may be shapes alone."""
    optimizer = jax.eval_shape(make_optimizer(settings).init, params)
    return LearnerState(shardings(params, mesh), shardings(optimizer, mesh), replicated(mesh))


def jitted_step(graphdef: Any, settings: SlowSettings, mesh: Mesh, placed: LearnerState) -> Any:
    """`train_step` for states that are placed so, which it donates: (state, frozen, batch)."""
    return jax.jit(
        partial(train_step, graphdef=graphdef, settings=settings, mesh=mesh),
        donate_argnums=0,
        out_shardings=(placed, replicated(mesh)),
    )


class Learner:
    """θ, its optimiser and what is frozen beside it, with the step compiled for them.

    Every process of a multi-host run calls the same methods with the same batch.
    """

    def __init__(self, model: Decoder, settings: SlowSettings, mesh: Mesh, seed: int = 0):
        """Take over the parameters of `model` as θ0; `seed` is of adapters' first values.

        Raises:
          ConfigError: no linear layer is to be adapted.
        """
        graphdef, params = nnx.split(model)
        self.hidden_size = model.config.hidden_size
        self.graphdef, self.settings, self.mesh = graphdef, settings, mesh
        self._parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        params = jax.device_put(params, shardings(params, mesh))
        params, frozen = starting_point(params, settings, jax.random.key(seed))
        placed = state_shardings(params, settings, mesh)
        params = put(params, placed.params) if settings.lora_rank else params
        self._frozen = in_host_memory(frozen) if settings.reference == "offload" else frozen
        initial = make_optimizer(settings).init
        optimizer = jax.jit(initial, out_shardings=placed.optimizer)(params)
        step = put(np.int32(0), placed.step)
        self.state = LearnerState(params, optimizer, step)
        self._train_step = jitted_step(graphdef, settings, mesh, placed)
        self._whole_weights = jax.jit(
            partial(whole_weights, settings=settings), out_shardings=shardings(frozen, mesh)
        )
        self._merged: tuple[Params, Params] | None = None  # adapters, and the weights they make

    @property
    def params(self) -> Params:
        """θ now, as weights of the whole model.  The next `step` donates them, unless merged."""
        if not self.settings.lora_rank:
            return self.state.params
        if self._merged is None or self._merged[0] is not self.state.params:
            self._merged = None  # before there is another copy
            merged = self._whole_weights(self.state.params, self._frozen)
            self._merged = (self.state.params, merged)
        return self._merged[1]

    @property
    def adapters(self) -> Adapters | None:
        """The adapters that are trained, or None where the weights are."""
        return self.state.params if self.settings.lora_rank else None

    @property
    def reference(self) -> Params:
        """θ0; in the hosts' memory if it is offloaded."""
        return self._frozen

    def step(self, batch: Batch) -> dict[str, float]:
        """Apply one update and return its metrics.

        `flops` is 6 · parameters · tokens for the gradient, 4 where the weights are frozen, and
        2 · parameters · tokens for the reference; attention, adapters and padding apart (Kaplan
        et al. 2020, arXiv 2001.08361, sec. 2.1).
        """
        self.state, metrics = self._train_step(self.state, self._frozen, self._place(batch))
        each = 6.0 if self.settings.lora_rank else 8.0
        flops = each * self._parameters * int(np.count_nonzero(batch.segments))
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        return values | {"flops": flops}

    def _place(self, batch: Batch) -> Batch:
        return put(batch, batch_shardings(batch, self.mesh))
