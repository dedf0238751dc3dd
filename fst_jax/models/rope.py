"""Rotary position embedding and the four ways in which checkpoints stretch it.

Every formula follows the checkpoint format that `transformers` defines, since weights are
trained against it: plain (Su et al. 2021, arXiv 2104.09864), linear position interpolation
(Chen et al. 2023, arXiv 2306.15595), YaRN (Peng et al. 2023, arXiv 2309.00071) and the
smoothed scheme of Llama 3.1.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions become angles.

    `theta` is the base of the frequencies.  `factor` stretches the context for every kind but
    `default`.  `original_length` is the context length before stretching (llama3, yarn);
    `low_freq_factor` and `high_freq_factor` belong to llama3; the rest to yarn, where
    `attention_factor=None` means "derive it from factor, mscale and mscale_all_dim".
    """

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


def inverse_frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Angle per position of each of the `head_dim / 2` planes, and the scale of cos and sin.

    Returns float32 [head_dim / 2] and a float that is 1 except for yarn.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    match rope.kind:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / np.float32(rope.factor), 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(rope, plain, head_dim), _yarn_attention_factor(rope)


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Keep short waves, stretch long ones by `factor`, blend linearly in between."""
    turns = rope.original_length * plain / (2 * math.pi)  # full turns within the old context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return ((1 - blend) * plain / rope.factor + blend * plain).astype(np.float32)


def _yarn(rope: Rope, plain: np.ndarray, head_dim: int) -> np.ndarray:
    """NTK-by-parts: planes that turn often keep their frequency, slow ones are interpolated."""

    def plane_that_turns(times: float) -> float:
        wavelength_ratio = rope.original_length / (times * 2 * math.pi)
        return head_dim * math.log(wavelength_ratio) / (2 * math.log(rope.theta))

    low, high = plane_that_turns(rope.beta_fast), plane_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    planes = np.arange(head_dim // 2, dtype=np.float32)
    interpolated = np.clip((planes - low) / (high - low), 0.0, 1.0)
    frequencies = plain / rope.factor * interpolated + plain * (1 - interpolated)
    return frequencies.astype(np.float32)


def _yarn_attention_factor(rope: Rope) -> float:
    """YaRN's temperature 0.1 ln(s) + 1, folded into cos and sin."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    return temperature(1.0)


def rope_tables(
    rope: Rope, head_dim: int, positions: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosines and sines (float32) of every position, ready to broadcast over the heads."""
    frequencies, scale = inverse_frequencies(rope, head_dim)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "B T H Dh"],
    cos: Float[Array, "B T 1 half"],
    sin: Float[Array, "B T 1 half"],
) -> Float[Array, "B T H Dh"]:
    """Rotate each plane (x[i], x[i + Dh/2]) by its angle; in float32, returned in x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
