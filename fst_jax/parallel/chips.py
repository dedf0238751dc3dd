"""Peak speed of known accelerators, for the model FLOP/s utilisation in the metrics."""

import jax

# Dense bfloat16 FLOP/s of one chip, by how its device kind begins: the vendors' data sheets
# (cloud.google.com/tpu/docs, nvidia.com; H100 and H200 as SXM modules).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def utilisation(flops: float, seconds: float) -> float | None:
    """Share of all devices' peak that `flops` in `seconds` are; None for an unknown device."""
    kind = jax.devices()[0].device_kind
    peak = next((value for name, value in PEAKS.items() if kind.startswith(name)), None)
    return None if peak is None else flops / seconds / (peak * jax.device_count())
