"""Rotary frequencies re-derived plane by plane in float64, and the rotation as complex numbers."""

import cmath
import math

import jax.numpy as jnp
import numpy as np
import pytest

from fst_jax.models.rope import Rope, inverse_frequencies, rope_tables, rotate


def plain(rope: Rope, dim: int) -> list[float]:
    return [rope.theta ** (-2 * i / dim) for i in range(dim // 2)]


def linear(rope: Rope, dim: int) -> list[float]:
    return [f / rope.factor for f in plain(rope, dim)]


def llama3(rope: Rope, dim: int) -> list[float]:
    out = []
    for f in plain(rope, dim):
        wavelength = 2 * math.pi / f
        if wavelength < rope.original_length / rope.high_freq_factor:
            out.append(f)
        elif wavelength > rope.original_length / rope.low_freq_factor:
            out.append(f / rope.factor)
        else:
            smooth = rope.original_length / wavelength - rope.low_freq_factor
            smooth /= rope.high_freq_factor - rope.low_freq_factor
            out.append((1 - smooth) * f / rope.factor + smooth * f)
    return out


def yarn(rope: Rope, dim: int) -> list[float]:
    def correction(rotations: float) -> float:
        length = rope.original_length / (rotations * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(rope.theta))

    low, high = correction(rope.beta_fast), correction(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    out = []
    for i, f in enumerate(plain(rope, dim)):
        ramp = min(max((i - low) / (high - low), 0), 1)
        out.append(f / rope.factor * ramp + f * (1 - ramp))
    return out


@pytest.mark.parametrize(
    ("oracle", "rope"),
    [
        (plain, Rope()),
        (plain, Rope(theta=1e6)),
        (linear, Rope("linear", factor=4.0)),
        (llama3, Rope("llama3", 5e5, 8.0, 8192)),
        (llama3, Rope("llama3", 1e4, 32.0, 64, low_freq_factor=1.5, high_freq_factor=3.0)),
        (yarn, Rope("yarn", 1e6, 4.0, 32768)),
        (yarn, Rope("yarn", 1e4, 2.0, 64, truncate=False)),
        (yarn, Rope("yarn", 1e4, 2.0, 4, beta_fast=8.0, beta_slow=2.0)),
    ],
)
@pytest.mark.parametrize("dim", [8, 128])
def test_frequencies(oracle, rope, dim):
    frequencies, _ = inverse_frequencies(rope, dim)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, oracle(rope, dim), rtol=2e-6)


@pytest.mark.parametrize(
    ("rope", "factor"),
    [
        (Rope("linear", factor=4.0), 1.0),
        (Rope("yarn", 1e4, 4.0, 64), 0.1 * math.log(4) + 1),
        (Rope("yarn", 1e4, 0.5, 64), 1.0),
        (Rope("yarn", 1e4, 4.0, 64, attention_factor=0.7), 0.7),
        (
            Rope("yarn", 1e4, 4.0, 64, mscale=0.7, mscale_all_dim=1.3),
            (0.07 * math.log(4) + 1) / (0.13 * math.log(4) + 1),
        ),
    ],
)
def test_attention_factor(rope, factor):
    assert inverse_frequencies(rope, 8)[1] == pytest.approx(factor)
    cos, sin = rope_tables(rope, 8, jnp.arange(5)[None])
    np.testing.assert_allclose(cos**2 + sin**2, factor**2, rtol=1e-6)


def test_rotation_is_multiplication_by_a_unit_complex_number():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2], [7, 300, 5]])
    rotated = rotate(jnp.asarray(x), *rope_tables(Rope(), 8, jnp.asarray(positions)))
    for b, t, h, i in np.ndindex(2, 3, 2, 4):
        turned = complex(x[b, t, h, i], x[b, t, h, i + 4])
        turned *= cmath.exp(1j * positions[b, t] * 10_000 ** (-2 * i / 8))
        got = complex(rotated[b, t, h, i], rotated[b, t, h, i + 4])
        assert abs(got - turned) < 1e-5 * (1 + positions[b, t] / 10)


def test_rotation_keeps_dtype():
    x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    assert rotate(x, *rope_tables(Rope(), 8, jnp.arange(2)[None])).dtype == jnp.bfloat16
