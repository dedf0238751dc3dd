"""The slow weights' update: one jitted, donated step over a packed batch.

    loss(θ) = objective(θ) + β · Σ weight · KL estimator(π_θ, π_ref)

The reference is the base model under the same prompt φ.  The policy term leaves
out groups without variance, in its denominator too; the KL regularizer covers
every sampled token, so that a policy which earns nothing still returns to the
base.  Gradients accumulate over micro-batches in a `lax.scan`; a step whose
gradient is not finite changes nothing and is counted.
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
from fst_jax.parallel.sharding import batch_shardings, put, replicated, shardings
from fst_jax.slow import kl
from fst_jax.slow.logprobs import score_tokens
from fst_jax.slow.objectives import OBJECTIVES
from fst_jax.slow.packing import Batch

Params = Any  # nnx.State of the decoder's parameters
Metrics = dict[str, Float[Array, ""]]


class LearnerState(NamedTuple):
    """What a step reads and replaces; its buffers are donated."""

    params: Params
    optimizer: Any
    step: Array  # int32, updates applied


def make_optimizer(settings: SlowSettings) -> optax.GradientTransformation:
    """Global-norm clip, then AdamW with linear warm-up and a constant rate."""
    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(
            learning_rate(settings),
            b1=settings.adam_b1,
            b2=settings.adam_b2,
            weight_decay=settings.weight_decay,
        ),
    )


def learning_rate(settings: SlowSettings) -> optax.Schedule:
    """Rate of update i (from 0): (i + 1) / warmup of the peak, then the peak."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    return lambda step: peak * jnp.minimum(1.0, (step + 1) / max(warmup, 1))


def micro_batch_loss(
    params: Params,
    reference: Params,
    rows: Batch,
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> tuple[Float[Array, ""], Metrics]:
    """This micro-batch's share of the loss and of every metric (shares add up)."""
    scores = score_tokens(nnx.merge(graphdef, params), rows, settings.head_chunk, mesh)
    base = score_tokens(nnx.merge(graphdef, reference), rows, settings.head_chunk, mesh)
    policy_loss, tokens = OBJECTIVES[settings.objective](
        scores.logprob, rows.behaviour, rows.advantage, rows.policy_weight, settings.clip_threshold
    )
    to_reference = kl.estimators(scores.logprob, jax.lax.stop_gradient(base.logprob))
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
    reference: Params,
    batch: Batch,
    *,
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> tuple[LearnerState, Metrics]:
    """One update of θ; pure.  `batch` holds all micro-batches (leading axis M)."""
    gradient_of = jax.grad(
        partial(micro_batch_loss, graphdef=graphdef, settings=settings, mesh=mesh), has_aux=True
    )

    def accumulate(carry: tuple[Params, Metrics], rows: Batch) -> tuple[Any, None]:
        gradients, metrics = gradient_of(state.params, reference, rows)
        return (jax.tree.map(jnp.add, carry[0], gradients), _add(carry[1], metrics)), None

    shapes = jax.eval_shape(
        gradient_of, state.params, reference, jax.tree.map(lambda x: x[0], batch)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (gradients, metrics), _ = jax.lax.scan(accumulate, zeros, batch)

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


class Learner:
    """θ, its optimiser and the frozen reference on a mesh, with the step compiled for them.

    Every process of a multi-host run calls the same methods with the same batch.
    """

    def __init__(self, model: Decoder, settings: SlowSettings, mesh: Mesh):
        """Take over the parameters of `model` as θ0; the reference is a copy of them."""
        graphdef, params = nnx.split(model)
        self.hidden_size = model.config.hidden_size
        self.graphdef, self.settings, self.mesh = graphdef, settings, mesh
        params = jax.device_put(params, shardings(params, mesh))
        self.reference = jax.tree.map(jnp.copy, params)
        initial = make_optimizer(settings).init
        placed = shardings(jax.eval_shape(initial, params), mesh)
        optimizer = jax.jit(initial, out_shardings=placed)(params)
        self._parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        step = put(np.int32(0), replicated(mesh))
        self.state = LearnerState(params, optimizer, step)
        state_shardings = jax.tree.map(lambda x: x.sharding, self.state)
        self._train_step = jax.jit(
            partial(train_step, graphdef=graphdef, settings=settings, mesh=mesh),
            donate_argnums=0,
            out_shardings=(state_shardings, replicated(mesh)),
        )

    @property
    def params(self) -> Params:
        """θ now.  The next `step` donates these buffers."""
        return self.state.params

    def step(self, batch: Batch) -> dict[str, float]:
        """Apply one update and return its metrics.

        `flops` is 6 · parameters · tokens for the gradient and 2 · parameters · tokens for the
        reference, attention and padding apart (Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1).
        """
        self.state, metrics = self._train_step(self.state, self.reference, self._place(batch))
        flops = 8.0 * self._parameters * int(np.count_nonzero(batch.segments))
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        return values | {"flops": flops}

    def _place(self, batch: Batch) -> Batch:
        return put(batch, batch_shardings(batch, self.mesh))
