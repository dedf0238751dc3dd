"""Facts of known accelerators: what a plan measures a program against, and MFU a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, from its vendor's data sheet where nothing else is said."""

    flops: float  # dense bfloat16 products, a second
    hbm: int | None = None  # bytes that programs may use, by the compiler's own account
    bandwidth: float | None = None  # of the main memory, bytes a second
    link: float | None = None  # of one link to a neighbour, bytes a second in one direction
    torus: int = 0  # a dimension of a slice closes to a ring where it is a multiple of this


# By how the device kind begins; the longer of two names first.  TPU: cloud.google.com/tpu/docs/v4
# to v6e for speeds and bandwidths (chips have six links, v5e and v6e four, and the bidirectional
# bandwidth given there is that of all together; v4's link: Jouppi et al. 2023, arXiv 2304.01433,
# table 4).  Usable memory is what libtpu 0.0.42 reports when a program exceeds it; v4's sheet says
# 32 GiB, v5e's 16 GB, v5p's 95 GB, v6e's 32 GB.  Rings: v4 and v5p are wired in cubes of 4 x 4 x 4,
# v5e and v6e in 16 x 16.  NVIDIA: nvidia.com, H100 and H200 as SXM modules.
CHIPS = {
    "TPU v4": Chip(275e12, int(30.75 * GIB), 1200e9, 50e9, 4),
    "TPU v5 lite": Chip(197e12, int(15.75 * GIB), 819e9, 50e9, 16),
    "TPU v5": Chip(459e12, int(95.74 * GIB), 2765e9, 100e9, 4),
    "TPU v6 lite": Chip(918e12, int(31.25 * GIB), 1638e9, 100e9, 16),
    "NVIDIA A100": Chip(312e12),
    "NVIDIA H100": Chip(989e12),
    "NVIDIA H200": Chip(989e12),
}


def chip_of(kind: str) -> Chip | None:
    """The facts of a device kind; None for an unknown one."""
    return next((chip for name, chip in CHIPS.items() if kind.startswith(name)), None)


def utilisation(flops: float, seconds: float) -> float | None:
    """Share of all devices' peak that `flops` in `seconds` are; None for an unknown device."""
    chip = chip_of(jax.devices()[0].device_kind)
    return None if chip is None else flops / seconds / (chip.flops * jax.device_count())


def links(chip: Chip, devices: Sequence[Any], slice_shape: Sequence[int]) -> int:
    """Links by which each of the devices along some mesh axes sends in a ring over all of them.

    `devices` have `coords` in a slice of shape `slice_shape`.  A dimension of the torus that they
    cover gives two links, one each way, and one where its ends are not joined.
    """
    total = 0
    for dimension, size in enumerate(slice_shape):
        covered = len({device.coords[dimension] for device in devices})
        if covered > 1:
            closed = covered == size and size % chip.torus == 0
            total += 2 if closed else 1
    return total
