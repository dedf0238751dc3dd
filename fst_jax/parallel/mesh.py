"""The device mesh: axes data, fsdp, tensor and context.

`data` replicates the parameters, `fsdp` splits them and the batch, `tensor` splits heads and inner
dimensions, `context` splits the tokens of each row.  All axes are of type Auto: shardings of
parameters, batches and a few activations are given (`sharding.py`), and XLA derives those of
everything in between.
"""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from fst_jax.config import ParallelSettings
from fst_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "context")


def make_mesh(settings: ParallelSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `parallel.mesh` over all devices, or over those given.

    An axis that is not named has size 1.

    Raises:
      ConfigError: an unknown axis, or sizes that do not use up the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(settings.mesh, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _sizes(asked: dict[str, int], devices: int) -> tuple[int, ...]:
    for axis in asked:
        if axis not in AXES:
            raise ConfigError(f"parallel.mesh: unknown axis {axis}; the axes are {', '.join(AXES)}")
    sizes = {axis: asked.get(axis, 1) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad:
        raise ConfigError(f"parallel.mesh.{bad[0]}: must be at least 1, or -1 for what is left")
    if len(free) > 1:
        raise ConfigError(f"parallel.mesh: only one axis may be -1, not {' and '.join(free)}")
    taken = math.prod(size for size in sizes.values() if size != -1)
    if free and devices % taken == 0:
        sizes[free[0]] = devices // taken
    elif taken != devices:
        need = "must divide" if free else "must equal"
        raise ConfigError(
            f"parallel.mesh: the sizes {dict(sizes)} take {taken} devices, which {need} the "
            f"{devices} of this machine or slice; let one axis be -1"
        )
    return tuple(sizes.values())
