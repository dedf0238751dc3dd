"""How each parameter of the decoder is split over the mesh: one table, path → PartitionSpec.

The first dimension of everything below `layers` is the stack of layers and is never split.
`fsdp` splits the dimension that all layers share (the hidden size), `tensor` the one that belongs
to heads, the inner size or the vocabulary, so that a layer needs one reduction after attention and
one after the MLP (Shoeybi et al. 2019, arXiv 1909.08053).  Optimiser moments have the paths of
their parameters at the end of their own and are split alike.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: tuple[tuple[str, PartitionSpec], ...] = (
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
    (r"ns_coeffs", PartitionSpec(None)),  # of the Muon optimiser
)
_COMPILED = tuple((re.compile(rf"(?:.*/)?(?:{path})"), spec) for path, spec in RULES)


def path_of(keys: tuple[Any, ...]) -> str:
    """The path of a leaf as the table writes it: `layers/mlp/gate/kernel`."""
    if keys and getattr(keys[-1], "name", None) == "value":  # the inside of an nnx.Variable
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How to split an array: by the first rule whose pattern ends its path.

    An axis that does not divide its dimension is dropped there.  Scalars, such as an optimiser's
    counts, are replicated.

    Raises:
      KeyError: no rule fits.
    """
    if not shape:
        return PartitionSpec()
    for pattern, axes in _COMPILED:
        if pattern.fullmatch(path) and len(axes) == len(shape):
            fitting = (
                axis if axis and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(axes, shape, strict=True)
            )
            return PartitionSpec(*fitting)
    raise KeyError(f"no sharding rule for {path} of shape {shape}")


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of parameters, or of an optimiser's state over them.

    Raises:
      KeyError: a leaf has no rule.
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: NamedSharding(mesh, spec(path_of(keys), leaf.shape, mesh)), tree
    )


def placer(mesh: Mesh) -> Callable[[str, np.ndarray], jax.Array]:
    """Puts the parameter of a path onto the mesh by its rule."""
    return lambda path, value: jax.device_put(
        value, NamedSharding(mesh, spec(path, value.shape, mesh))
    )


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Rows, which are dimension `axis`, over data and fsdp; all other dimensions whole."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, ("data", "fsdp")))


def whole_shards(rows: int, mesh: Mesh) -> int:
    """`rows` rounded up so that every shard of a batch has equally many."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // shards) * shards


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
