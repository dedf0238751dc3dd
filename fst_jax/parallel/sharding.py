"""How every array is split over the mesh: one table, path → PartitionSpec.

Parameters.  The first dimension of everything below `layers` is the stack of layers and is never
split.  `fsdp` splits the dimension that all layers share (the hidden size), `tensor` the one that
belongs to heads, the inner size or the vocabulary, so that a layer needs one reduction after
attention and one after the MLP (Shoeybi et al. 2019, arXiv 1909.08053).  The reference has the
paths of the parameters; optimiser moments have them at the end of their own: both are split alike.

Batches and activations.  Rows go over data and fsdp, the tokens of a row over context: everything
but attention works on tokens one by one (`models/row_attention.py` for the exception).

Keys and values of the sampler.  Its rows are whole sequences that grow by one token at a time, so
the context axis serves them as more rows.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ROWS = ("data", "fsdp")  # axes that split the rows of a training batch
SEQUENCES = ("data", "fsdp", "context")  # those that split the sequences being sampled

RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # Parameters, reference, optimiser
    (r"embedding", PartitionSpec("tensor", "fsdp")),
    (r"head/kernel", PartitionSpec("fsdp", "tensor")),
    (r"layers/attention/(query|key|value)/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"layers/attention/(query|key|value)/bias", PartitionSpec(None, "tensor")),
    (r"layers/attention/output/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"layers/attention/output/bias", PartitionSpec(None, None)),
    (r"layers/attention/(query|key)_norm/scale", PartitionSpec(None, None)),
    (r"layers/mlp/(gate|up)/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"layers/mlp/(gate|up)/bias", PartitionSpec(None, "tensor")),
    (r"layers/mlp/down/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"layers/mlp/down/bias", PartitionSpec(None, None)),
    (r"layers/(input|mlp)_norm/scale", PartitionSpec(None, None)),
    (r"norm/scale", PartitionSpec(None)),
    # LoRA's factors A [L, in, r] and B [L, r, out], as the dimensions of their kernels are
    (r"head/a", PartitionSpec("fsdp", None)),
    (r"head/b", PartitionSpec(None, "tensor")),
    (r"layers/(attention/(query|key|value)|mlp/(gate|up))/a", PartitionSpec(None, "fsdp", None)),
    (r"layers/(attention/(query|key|value)|mlp/(gate|up))/b", PartitionSpec(None, None, "tensor")),
    (r"layers/(attention/output|mlp/down)/a", PartitionSpec(None, "tensor", None)),
    (r"layers/(attention/output|mlp/down)/b", PartitionSpec(None, None, "fsdp")),
    # Of optimisers: Muon's constants, and Adafactor's means over rows and columns, which are so
    # much smaller than their matrices that every device holds them
    (r"ns_coeffs", PartitionSpec(None)),
    (r"v_(row|col)/layers/.+/(kernel|a|b)", PartitionSpec(None, None)),
    (r"v_(row|col)/(embedding|head/(kernel|a|b))", PartitionSpec(None)),
    # Micro-batches [M, R, tokens or targets], and what is computed of one
    (r"batch/\w+", PartitionSpec(None, ROWS, "context")),
    (r"activations/(tokens|targets)", PartitionSpec(ROWS, "context")),
    (r"activations/hidden", PartitionSpec(ROWS, "context", None)),
    (r"activations/heads", PartitionSpec(ROWS, "context", "tensor", None)),
    # The sampler: prompts being read, the caches of contexts and slots, their logits
    (r"sampler/tokens", PartitionSpec(SEQUENCES, None)),
    (r"sampler/contexts/(keys|values)", PartitionSpec(None, SEQUENCES, "tensor", None, None)),
    (r"sampler/slots/(keys|values)", PartitionSpec(None, SEQUENCES, None, "tensor", None, None)),
    (r"sampler/contexts/logits", PartitionSpec(SEQUENCES, None)),
    (r"sampler/slots/logits", PartitionSpec(SEQUENCES, None, None)),
)
_COMPILED = tuple((re.compile(rf"(?:.*/)?(?:{path})"), spec) for path, spec in RULES)


def path_of(keys: tuple[Any, ...]) -> str:
    """The path of a leaf as the table writes it: `layers/mlp/gate/kernel`."""
    if keys and getattr(keys[-1], "name", None) == "value":  # the inside of an nnx.Variable
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How to split an array: by the first rule whose pattern ends its path.

    An axis that does not divide its dimension is dropped there.  Single numbers, such as an
    optimiser's counts, are replicated.

    Raises:
      KeyError: no rule fits.
    """
    if math.prod(shape) == 1:
        return PartitionSpec()
    for pattern, axes in _COMPILED:
        if pattern.fullmatch(path) and len(axes) == len(shape):
            fitting = (
                axis if axis and size % shards(mesh, axis) == 0 else None
                for axis, size in zip(axes, shape, strict=True)
            )
            return PartitionSpec(*fitting)
    raise KeyError(f"no sharding rule for {path} of shape {shape}")


def shards(mesh: Mesh, axes: str | tuple[str, ...]) -> int:
    """Into how many parts the axes of a mesh split a dimension."""
    names = (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of parameters, or of an optimiser's state over them.

    Raises:
      KeyError: a leaf has no rule.
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: NamedSharding(mesh, spec(path_of(keys), leaf.shape, mesh)), tree
    )


def put(tree: Any, placed: Any) -> Any:
    """Host values onto devices: each process holds all of them and gives its devices their parts.

    `placed` is one sharding, or a tree of them.  `jax.device_put` would have the processes compare
    what they hold, each time.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, placed)

    def parts(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(parts, tree, jax.tree.broadcast(placed, tree))


def placer(mesh: Mesh) -> Callable[[str, np.ndarray], jax.Array]:
    """Puts the parameter of a path onto the mesh by its rule."""
    return lambda path, value: put(value, NamedSharding(mesh, spec(path, value.shape, mesh)))


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """The sharding of every array [M, R, …] of a batch: rows by shard, tokens by context."""
    return jax.tree.map(lambda x: NamedSharding(mesh, spec("batch/x", x.shape, mesh)), batch)


def constrain(x: jax.Array, path: str, mesh: Mesh) -> jax.Array:
    """Within a jitted function: `x`, split as the table says for `path`."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(path, x.shape, mesh)))


def whole_shards(rows: int, mesh: Mesh, axes: tuple[str, ...] = ROWS) -> int:
    """`rows` rounded up so that every shard of a batch has equally many."""
    count = shards(mesh, axes)
    return -(-rows // count) * count


def in_host_memory(tree: Any) -> Any:
    """Arrays, split as they are, in the memory of the hosts of their devices."""
    return jax.device_put(tree, jax.memory.Space.Host)


def on_devices(tree: Any) -> Any:
    """Arrays, split as they are, in the memory of their devices; also within a jitted function.

    `tree` itself if they are there already.
    """
    space = jax.memory.Space.Device
    there = all(jax.typeof(x).memory_space == space for x in jax.tree.leaves(tree))
    return tree if there else jax.device_put(tree, space)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
