"""Supervised learning of completions: the mean of −log π_θ over the tokens to be learned.

The same rows, scores and vocabulary head as the policy gradient; the paper warms its math base
up this way, and the small world's base model is made with it.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float
from optax.contrib import MuonDimensionNumbers, muon

from fst_jax.models.decoder import Decoder
from fst_jax.parallel.sharding import batch_shardings, path_of, put, replicated, shardings
from fst_jax.slow.logprobs import score_tokens
from fst_jax.slow.packing import Batch

OptimizerName = Literal["adamw", "muon"]
# Muon is for matrices; what it leaves to Adam learns best at this share of its rate here.
_ADAM_SHARE = 0.2


class SupervisedState(NamedTuple):
    """What a step reads and replaces; its buffers are donated."""

    params: Any
    optimizer: Any


def make_optimizer(name: OptimizerName) -> optax.GradientTransformation:
    """AdamW without decay, or Muon (Jordan et al. 2024) on matrices with Adam on the rest.

    Updates are those of rate 1: whoever applies them multiplies them by the rate.
    """
    if name == "adamw":
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, weight_decay=0.0))
    return muon(
        1.0,
        adam_b2=0.98,
        adam_learning_rate=_ADAM_SHARE,
        muon_weight_dimension_numbers=_matrices,
    )


def _matrices(params: Any) -> Any:
    """Which axes of each parameter make a matrix; None for those that are none."""

    def axes(keys: tuple, _: Any) -> MuonDimensionNumbers | None:
        path = path_of(keys)
        if not path.endswith("/kernel") or path.startswith("head"):
            return None
        return MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))

    return jax.tree_util.tree_map_with_path(axes, params)


def supervised_loss(
    params: Any, rows: Batch, graphdef: Any, head_chunk: int, mesh: Mesh
) -> Float[Array, ""]:
    """This micro-batch's share of the mean of −log π_θ over all tokens of the batch."""
    scores = score_tokens(nnx.merge(graphdef, params), rows, head_chunk, mesh)
    return -jnp.sum(rows.token_weight * scores.logprob)


class SupervisedLearner:
    """A decoder and its optimiser on a mesh, with the step compiled for them."""

    def __init__(
        self, model: Decoder, optimizer: optax.GradientTransformation, mesh: Mesh, head_chunk: int
    ):
        """Take over the parameters of `model`."""
        graphdef, params = nnx.split(model)
        self.graphdef, self.mesh = graphdef, mesh
        params = jax.device_put(params, shardings(params, mesh))
        share = partial(supervised_loss, graphdef=graphdef, head_chunk=head_chunk, mesh=mesh)
        placed = shardings(jax.eval_shape(optimizer.init, params), mesh)
        started = jax.jit(optimizer.init, out_shardings=placed)(params)
        self.state = SupervisedState(params, started)

        def step(
            state: SupervisedState, batch: Batch, rate: Array
        ) -> tuple[SupervisedState, Array]:
            gradient_of = jax.value_and_grad(share)

            def accumulate(carry: Any, rows: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, gradient_of(state.params, rows)), None

            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            (loss, gradients), _ = jax.lax.scan(accumulate, zeros, batch)
            updates, moved = optimizer.update(gradients, state.optimizer, state.params)
            updates = jax.tree.map(lambda update: rate * update, updates)
            return SupervisedState(optax.apply_updates(state.params, updates), moved), loss

        def loss(params: Any, batch: Batch) -> Array:
            return jnp.sum(jax.lax.map(lambda rows: share(params, rows), batch))

        self._loss = jax.jit(loss)
        state_shardings = jax.tree.map(lambda x: x.sharding, self.state)
        self._step = jax.jit(
            step, donate_argnums=0, out_shardings=(state_shardings, replicated(mesh))
        )

    @property
    def params(self) -> Any:
        """θ now.  The next `step` donates these buffers."""
        return self.state.params

    def step(self, batch: Batch, rate: float) -> Array:
        """One update at a learning rate; returns the loss, a float32 scalar on the device."""
        placed = put(batch, batch_shardings(batch, self.mesh))
        self.state, loss = self._step(self.state, placed, rate)
        return loss

    def loss(self, batch: Batch) -> Array:
        """The mean of −log π_θ over a batch's tokens, without learning; a float32 scalar."""
        placed = put(batch, batch_shardings(batch, self.mesh))
        return self._loss(self.state.params, placed)
