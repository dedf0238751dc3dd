"""The programs of a run, compiled for a mesh whose devices need not be there.

They are the ones that `train` runs: the learner's `train_step` and the sampler's prefill, decode
and rearrange, for the largest shapes that the config allows: every context and every completion
as long as it may be.  Parameters are shapes alone, so nothing is allocated.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Var
from jax.sharding import Mesh

from fst_jax.config import Config
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder
from fst_jax.parallel.sharding import ROWS, batch_shardings, shardings, shards
from fst_jax.parts import held_dtype
from fst_jax.rollout.batching import CHUNK, largest_grids
from fst_jax.rollout.slots import programs
from fst_jax.slow import distill
from fst_jax.slow.learner import (
    LearnerState,
    jitted_step,
    micro_batch_loss,
    state_shardings,
)
from fst_jax.slow.objectives import recipe
from fst_jax.slow.optimizer import make_optimizer
from fst_jax.slow.packing import Batch, Pair, Sample, completions_per_row, pack, pack_pairs, sides
from fst_jax.slow.policy import starting_shapes

STOP_IDS = 4  # a bucket of the engine's; models have one to three
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDED = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM")
_USED = re.compile(r"Used ([\d.]+)([KMGT])i?B? of ([\d.]+)([KMGT])i?B? hbm")


@dataclass(frozen=True)
class Lowered:
    """A program before compilation; sizes are bytes of one chip."""

    name: str
    compile: Callable[[], Any]  # a jax.stages.Compiled
    arguments: dict[str, int]  # by kind
    beside: dict[str, int] = field(default_factory=dict)  # what its owner holds beyond them
    activations: int = 0  # kept from the forward pass for the backward pass
    turns: int = 1  # of its loop whose end depends on data, at most


@dataclass(frozen=True)
class Compiled:
    """A compiled program; where it did not fit, with what the compiler said of its memory."""

    lowered: Lowered
    seconds: float
    arguments: int  # bytes of one chip, as is all below
    peak: int  # of its memory at the worst moment: arguments, outputs, temporaries and code
    text: str | None  # None if the compiler gave up for want of memory


def compiled(lowered: Lowered, platform: str) -> Compiled:
    """Compile a program for devices of a platform; one that exceeds their memory is no error."""
    start = time.monotonic()
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = memory_needed(str(error), sum(lowered.arguments.values()))
        if needed is None:
            raise
        arguments = sum(lowered.arguments.values())
        return Compiled(lowered, time.monotonic() - start, arguments, arguments + needed, None)
    seconds, memory = time.monotonic() - start, done.memory_analysis()
    arguments, code = memory.argument_size_in_bytes, memory.generated_code_size_in_bytes
    if platform == "cpu":  # whose peak leaves temporaries out
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak = arguments + outputs + memory.temp_size_in_bytes
    else:  # whose temporaries are a sum over buffers that take turns in the same memory
        peak = memory.peak_memory_in_bytes
    return Compiled(lowered, seconds, arguments, peak + code, done.as_text())


def memory_needed(message: str, arguments: int) -> int | None:
    """Bytes beside the arguments that the compiler's refusal names; None if it is none."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    if needed := _NEEDED.search(message):
        return int(float(needed[1]) * _UNITS[needed[2]])
    if used := _USED.search(message):
        return max(0, int(float(used[1]) * _UNITS[used[2]]) - arguments)
    return None


@dataclass(frozen=True)
class Model:
    """The decoder of a config without its weights."""

    config: ModelConfig
    graphdef: Any
    params: Any  # shapes with shardings, of the dtype in which the learner holds them

    @classmethod
    def of(cls, config: Config, architecture: ModelConfig, mesh: Mesh) -> "Model":
        dtype = jnp.dtype(config.model.dtype)
        options = {
            "dtype": dtype, "remat": config.model.remat, "param_dtype": held_dtype(config),
            "platform": mesh.devices.flat[0].platform,
        }  # fmt: skip
        shapes = nnx.eval_shape(lambda: Decoder(architecture, **options, rngs=nnx.Rngs(0)))
        graphdef, params = nnx.split(shapes)
        return cls(architecture, graphdef, _placed(params, shardings(params, mesh)))


def full_batch(config: Config, hidden_size: int, mesh: Mesh) -> Batch | Pair:
    """The batch of an update whose contexts and completions are all as long as they may be.

    A pair where the teacher or the reference reads another context than θ.
    """
    rollout, slow = config.rollout, config.slow
    apart = config.distill.enabled or slow.reference_prompt == "none"
    each = rollout.group_size // config.population
    longest, new = rollout.max_prompt_tokens, rollout.max_new_tokens
    samples = [
        Sample(
            context_ids=(problem, prompt, *(0,) * (longest - 2))[:longest],
            ids=np.zeros(new, np.int32),
            logprobs=np.zeros(new, np.float32),
            temperature=rollout.temperature,
            group=problem,
            advantage=1.0,
            valid=True,
            frozen_ids=(problem, prompt, *(0,) * (longest - 2))[:longest] if apart else (),
        )
        for problem in range(rollout.problems_per_step // config.slow.minibatches)
        for prompt in range(config.population)
        for _ in range(each)
    ]
    per_row = completions_per_row(each, longest, new, hidden_size)
    if apart:
        aggregation = recipe(slow).aggregation
        (pair,) = pack_pairs([samples], per_row, slow.micro_batch_rows, mesh, aggregation, new)
        return pair
    return pack(samples, per_row, slow.micro_batch_rows, mesh)


def train_program(config: Config, model: Model, batch: Batch | Pair, mesh: Mesh) -> Lowered:
    """The learner's step over a batch, of which only the shapes count."""
    settings = config.slow
    trained, frozen = starting_shapes(model.params, settings)
    placed = state_shardings(trained, settings, mesh)
    optimizer = jax.eval_shape(make_optimizer(settings).init, trained)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    state: LearnerState = _placed(LearnerState(trained, optimizer, count), placed)
    beside = shardings(frozen, mesh)
    offloaded = settings.reference == "offload"
    if offloaded:
        beside = jax.tree.map(lambda x: x.with_memory_kind("pinned_host"), beside)
    frozen = _placed(frozen, beside)
    shapes: Batch | Pair = _placed(batch, batch_shardings(batch, mesh))
    step = jitted_step(model.graphdef, settings, mesh, placed, config.distill.enabled)
    refreshed = settings.reference_refresh or config.distill.teacher_refresh
    base = 0 if offloaded else per_chip(frozen)  # the reference, or the weights under adapters
    weights = per_chip(state.params) + (base if settings.lora_rank else 0)
    return Lowered(
        "train step",
        lambda: step.lower(state, frozen, shapes).compile(),
        {
            "parameters": weights,
            "optimizer": per_chip((state.optimizer, state.step)),
            "reference": 0 if settings.lora_rank else base,
            "batch": per_chip(shapes),
        },
        # The base, from which drift is measured, once it is no longer the reference.
        beside={"reference": base if refreshed else 0},
        activations=_residuals(config, model, batch, mesh),
    )


def _residuals(config: Config, model: Model, batch: Batch | Pair, mesh: Mesh) -> int:
    """Bytes that a micro-batch's forward pass keeps for its backward pass, on one chip.

    All of them are split as rows and tokens are, or as finely as parameters; `tensor` is left out.
    """
    if config.model.remat == "offload":
        return 0  # they wait in the host's memory

    how = {"graphdef": model.graphdef, "settings": config.slow, "mesh": mesh}

    def forward(trained: Any, frozen: Any, rows: Batch | Pair) -> Any:
        own, other = sides(rows)

        def loss(trained: Any) -> Any:
            if config.distill.enabled:
                return distill.micro_batch_loss(trained, frozen, own, other, **how)
            return micro_batch_loss(trained, frozen, own, own.behaviour, **how)

        return jax.vjp(loss, trained, has_aux=True)[1]

    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
    jaxpr = jax.make_jaxpr(forward)(*starting_shapes(model.params, config.slow), rows).jaxpr
    given = set(jaxpr.invars) | set(jaxpr.constvars)
    kept = {var for var in jaxpr.outvars if isinstance(var, Var) and var not in given}
    avals: list[Any] = [var.aval for var in kept]
    size = sum(aval.size * aval.dtype.itemsize for aval in avals)
    return size // shards(mesh, (*ROWS, "context"))


def sampler_programs(config: Config, model: Model, mesh: Mesh) -> list[Lowered]:
    """What the in-process engine runs, at the end of the longest completions."""
    rollout, dtype = config.rollout, jnp.dtype(config.model.dtype)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), model.params
    )
    each = rollout.group_size // config.population
    sizes = (rollout.batch_size, each, rollout.max_prompt_tokens, rollout.max_new_tokens)
    grid, before, piece = largest_grids(*sizes, mesh)
    own = programs(model.graphdef, model.config, dtype, mesh)
    contexts, slots = map(per_chip, own.shapes(grid))
    # A copy in the compute dtype, or of merged adapters; else those that are held anyway.
    copied = dtype != held_dtype(config) or config.slow.trains_adapters
    weights = {"sampler" if copied else "parameters": per_chip(params)}
    copy = weights.get("sampler", 0)
    arguments = {
        "prefill": weights | {"sampler": copy + contexts},
        "decode": weights | {"sampler": copy + contexts + slots},
        "rearrange": {"sampler": per_chip(own.shapes(before))},
    }
    beside = {"prefill": {"sampler": slots}, "rearrange": {"sampler": copy}}
    lowered = own.lower(params, grid, before, piece, STOP_IDS, CHUNK)
    return [
        Lowered(name, program.compile, arguments[name], beside.get(name, {}), turns=CHUNK)
        for name, program in lowered.items()
    ]


def per_chip(tree: Any) -> int:
    """Bytes of one chip's part of arrays that are given as shapes with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _placed(shapes: Any, placed: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        placed,
    )
