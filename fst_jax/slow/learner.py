"""The slow weights' update: one jitted, donated step over a packed batch.

    loss(θ) = objective(θ) + β · Σ weight · KL estimator(π_θ, π_ref)

The reference is the base model under the same prompt φ, or without it where
`slow.reference_prompt` says so.  The policy term leaves
out groups without variance, in its denominator too; the KL regularizer covers
every sampled token, so that a policy which earns nothing still returns to the
base.  The reference is scored first, then gradients accumulate over
micro-batches in a `lax.scan`; an update whose loss or gradient is not finite
changes nothing and is counted.  A step may make several updates, over parts of its
problems and over all of them again; each is the same compiled program.

With `distill.enabled` the loss is that of `distill.py`, and the frozen weights
are its teacher; all else is the same.
"""

from collections.abc import Callable, Sequence
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

from fst_jax.config import DistillSettings, SlowSettings
from fst_jax.models.decoder import Decoder
from fst_jax.models.lora import Adapters
from fst_jax.parallel.sharding import batch_shardings, in_host_memory, put, replicated, shardings
from fst_jax.slow import distill, importance, kl
from fst_jax.slow.logprobs import score_tokens
from fst_jax.slow.objectives import policy_loss
from fst_jax.slow.optimizer import learning_rate, make_optimizer
from fst_jax.slow.packing import Batch, Pair, sides
from fst_jax.slow.penalty import log_ratios
from fst_jax.slow.policy import policy, reference_logprobs, starting_point, whole_weights

Params = Any  # nnx.State of the decoder's parameters; what is trained may be adapters instead
Metrics = dict[str, Float[Array, ""]]
# (params, frozen, *parts of a micro-batch) -> its share of the loss and of every metric
Share = Callable[..., tuple[Float[Array, ""], Metrics]]


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
    reached = jax.lax.stop_gradient(scores.logprob)
    mismatch = kl.estimators(rows.behaviour, reached)["k3"]
    if importance.ratio_to(settings) == "now":
        rows = importance.against(reached, rows, settings)
    loss, tokens = policy_loss(scores.logprob, rows, settings)
    to_reference = kl.estimators(scores.logprob, reference_logprob)
    if settings.kl_placement == "loss":
        divergence = kl.regularizer(settings.kl_estimator, scores.logprob, reference_logprob)
        loss += settings.kl_coefficient * jnp.sum(rows.kl_weight * divergence)

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


def update(
    state: LearnerState,
    frozen: Params,
    batch: tuple[Any, ...],
    share: Share,
    settings: SlowSettings,
) -> tuple[LearnerState, Metrics]:
    """One update of θ by the loss whose shares are given; pure.

    `batch` is what a share takes of all micro-batches (leading axis M).
    """
    gradient_of = jax.grad(share, has_aux=True)

    def accumulate(carry: tuple[Params, Metrics], part: tuple[Any, ...]) -> tuple[Any, None]:
        gradients, metrics = gradient_of(state.params, frozen, *part)
        return (jax.tree.map(jnp.add, carry[0], gradients), _add(carry[1], metrics)), None

    shapes = jax.eval_shape(gradient_of, state.params, frozen, *jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (gradients, metrics), _ = jax.lax.scan(accumulate, zeros, batch)

    updates, optimizer = make_optimizer(settings).update(gradients, state.optimizer, state.params)
    updated = LearnerState(optax.apply_updates(state.params, updates), optimizer, state.step + 1)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
    metrics |= {
        "grad_norm": norm,
        "lr": learning_rate(settings)(state.step),
        "nonfinite_steps": 1.0 - finite.astype(jnp.float32),
    }
    return kept, metrics


def train_step(
    state: LearnerState,
    frozen: Params,
    batch: Batch | Pair,
    *,
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> tuple[LearnerState, Metrics]:
    """One update of θ by RL; pure.  `batch` holds all micro-batches (leading axis M).

    It is a pair where the reference reads another context.  What is trained and what is frozen: see
    `policy.py`.
    """
    own, other = sides(batch)
    scored = (own, reference_logprobs(frozen, other, graphdef, settings, mesh))
    share = partial(micro_batch_loss, graphdef=graphdef, settings=settings, mesh=mesh)
    return update(state, frozen, scored, share, settings)


def distill_step(
    state: LearnerState,
    frozen: Params,
    pair: Pair,
    *,
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
) -> tuple[LearnerState, Metrics]:
    """One update of θ towards the teacher, which is what is frozen; pure.  Else as `train_step`."""
    share = partial(distill.micro_batch_loss, graphdef=graphdef, settings=settings, mesh=mesh)
    return update(state, frozen, pair, share, settings)


def state_shardings(params: Params, settings: SlowSettings, mesh: Mesh) -> LearnerState:
    """How each array of the state is split over the mesh; `params` may be shapes alone."""
    optimizer = jax.eval_shape(make_optimizer(settings).init, params)
    return LearnerState(shardings(params, mesh), shardings(optimizer, mesh), replicated(mesh))


def jitted_step(
    graphdef: Any,
    settings: SlowSettings,
    mesh: Mesh,
    placed: LearnerState,
    distills: bool = False,
) -> Any:
    """`train_step`, or `distill_step`, for states that are placed so, which it donates.

    It takes (state, frozen, batch).
    """
    step = distill_step if distills else train_step
    return jax.jit(
        partial(step, graphdef=graphdef, settings=settings, mesh=mesh),
        donate_argnums=0,
        keep_unused=True,  # a batch lies on the devices whole, whatever the objective reads of it
        out_shardings=(placed, replicated(mesh)),
    )


def _over_updates(updates: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """One step's metrics from those of its updates, on the host (see `Learner.step`)."""

    def combined(name: str) -> Any:
        values = [metrics[name] for metrics in updates]
        match name:
            case "lr":
                return values[-1]
            case "mismatch_k3":
                return values[0]
            case "nonfinite_steps":
                return np.sum(values)
            case "ratio_max":
                return np.max(values)
        return np.mean(values)

    return {name: float(combined(name)) for name in updates[0]}


class Learner:
    """θ, its optimiser and what is frozen beside it, with the step compiled for them.

    Every process of a multi-host run calls the same methods with the same batch.
    """

    def __init__(
        self,
        model: Decoder,
        settings: SlowSettings,
        mesh: Mesh,
        seed: int = 0,
        distilling: DistillSettings | None = None,
    ):
        """Take over the parameters of `model` as θ0; `seed` is of adapters' first values.

        With `distilling` each step follows a teacher, and takes pairs; else it is one of RL.

        Raises:
          ConfigError: no linear layer is to be adapted.
        """
        graphdef, params = nnx.split(model)
        self.hidden_size = model.config.hidden_size
        self.graphdef, self.settings, self.mesh = graphdef, settings, mesh
        self._distills = distilling is not None
        # Steps after which the frozen weights become those of then; 0: never.
        self.refresh_every = (
            distilling.teacher_refresh if distilling else settings.reference_refresh
        )
        self._parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        params = jax.device_put(params, shardings(params, mesh))
        params, frozen = starting_point(params, settings, jax.random.key(seed))
        placed = state_shardings(params, settings, mesh)
        params = put(params, placed.params) if settings.lora_rank else params
        self._keep(frozen)
        initial = make_optimizer(settings).init
        optimizer = jax.jit(initial, out_shardings=placed.optimizer)(params)
        step = put(np.int32(0), placed.step)
        self.state = LearnerState(params, optimizer, step)
        self._train_step = jitted_step(graphdef, settings, mesh, placed, self._distills)
        self._against_params = jax.jit(
            partial(importance.against_params, graphdef=graphdef, settings=settings, mesh=mesh)
        )
        self._whole_weights = jax.jit(
            lambda trained, frozen, _: whole_weights(trained, frozen, settings),
            out_shardings=shardings(frozen, mesh),
            donate_argnums=2,  # the weights that were merged before make room for these
            keep_unused=True,
        )
        self._merged: tuple[Any, Params] | None = None  # adapters, and the weights they make
        self.minibatches: Sequence[Batch | Pair] = ()  # of the newest step, on the host

    @property
    def params(self) -> Params:
        """θ now, as weights of the whole model.

        They last until the next `step`, which donates them; merged ones, until the weights that a
        step makes are asked for.
        """
        if not self.settings.lora_rank:
            return self.state.params
        if self._merged is None:
            self._merged = (None, jax.tree.map(jnp.copy, self._frozen))
        adapters, merged = self._merged
        if adapters is not self.state.params:
            merged = self._whole_weights(self.state.params, self._frozen, merged)
            self._merged = (self.state.params, merged)
        return merged

    @property
    def adapters(self) -> Adapters | None:
        """The adapters that are trained, or None where the weights are."""
        return self.state.params if self.settings.lora_rank else None

    @property
    def reference(self) -> Params:
        """θ0, or θ when it was last refreshed; in the hosts' memory if it is offloaded.

        The teacher, where there is one.
        """
        return self._frozen

    def step(self, *minibatches: Batch | Pair) -> dict[str, float]:
        """`slow.epochs` passes over the minibatches, an update each; returns the step's metrics.

        Metrics are means over the updates, except lr (the last), nonfinite_steps (a sum), ratio_max
        (the largest) and mismatch_k3, which is measured before θ has moved: over all minibatches
        where π_old was scored, else over the first.
        `flops` is 6 · parameters · tokens for the gradient, 4 where the weights are frozen, and
        2 · parameters · tokens for each pass forwards: the reference's or the teacher's, and that
        of π_old; attention, adapters and padding apart (Kaplan et al. 2020, arXiv 2001.08361, sec.
        2.1).
        """
        settings, frozen, self.minibatches = self.settings, self._frozen, minibatches
        batches, mismatches = [self._place(batch) for batch in minibatches], []
        scored = not self._distills and importance.ratio_to(settings) == "before"
        if scored:
            for i, batch in enumerate(batches):
                own = sides(batch).own
                *moved, mismatch = self._against_params(self.state.params, frozen, own)
                old, weight = jax.device_put(moved, own.behaviour.sharding)  # one program for all
                own = own._replace(behaviour=old, policy_weight=weight)
                batches[i] = batch._replace(own=own) if isinstance(batch, Pair) else own
                mismatches.append(mismatch)
        updates = []
        for batch in batches * settings.epochs:
            self.state, metrics = self._train_step(self.state, frozen, batch)
            updates.append(metrics)
        values = _over_updates(jax.device_get(updates))
        if scored:
            values["mismatch_k3"] = float(np.mean(jax.device_get(mismatches)))
        flops = sum(self._flops(batch, scored) for batch in minibatches)
        return values | {"flops": flops * self._parameters}

    def _flops(self, batch: Batch | Pair, scored: bool) -> float:
        """Of a step's updates over a batch, by parameter."""
        own, other = (float(np.count_nonzero(side.segments)) for side in sides(batch))
        gradient = 4.0 if self.settings.lora_rank else 6.0
        return (gradient * own + 2.0 * other) * self.settings.epochs + 2.0 * scored * own

    def log_ratios(self, batch: Batch | Pair) -> Float[np.ndarray, "N"]:
        """log π_θ(y) − log π_ref(y) of each sample that a batch was packed from."""
        return log_ratios(
            self.state.params,
            self._frozen,
            batch,
            graphdef=self.graphdef,
            settings=self.settings,
            mesh=self.mesh,
        )

    def refresh_reference(self) -> None:
        """Make the weights of now the reference."""
        self._keep(jax.tree.map(jnp.copy, self.state.params))

    @property
    def saved(self) -> tuple[Any, ...]:
        """The arrays that a checkpoint holds: the state, and a reference that is not the base."""
        return (*self.state, *([self._frozen] if self.refresh_every else []))

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Take over what `saved` gave."""
        params, optimizer, step, *reference = saved
        self.state = LearnerState(params, optimizer, step)
        for kept in reference:
            self._keep(kept)

    def _keep(self, frozen: Params) -> None:
        self._frozen = in_host_memory(frozen) if self.settings.reference == "offload" else frozen

    def reset_optimizer(self) -> None:
        """Start the optimiser anew: no moments, and the warm-up begins again."""
        init, state = make_optimizer(self.settings).init, self.state
        placed = jax.tree.map(lambda x: x.sharding, (state.optimizer, state.step))
        anew = jax.jit(lambda params, step: (init(params), 0 * step), out_shardings=placed)
        self.state = LearnerState(state.params, *anew(state.params, state.step))

    def _place(self, batch: Any) -> Any:
        return put(batch, batch_shardings(batch, self.mesh))
