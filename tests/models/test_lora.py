"""Adapters: where they go, where they start, and that they compute what merged weights do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fst_jax.errors import ConfigError
from fst_jax.models import lora
from fst_jax.models.attention import attention
from fst_jax.models.lora import Adapters, LowRank
from tests.slow import tiny

GRAPHDEF, BASE = nnx.split(tiny.model())
TOKENS = np.array([[5, 9, 50, 3, 7, 31], [1, 2, 3, 4, 5, 6]])
EVERY = (
    *(f"layers/attention/{name}" for name in ("query", "key", "value", "output")),
    *(f"layers/mlp/{name}" for name in ("gate", "up", "down")),
    "head",
)
SCALE = 0.7


def logits(model) -> jax.Array:
    """[2, 6, V], causal."""
    mask = jnp.tril(jnp.ones((1, 6, 6), bool))
    positions = jnp.broadcast_to(jnp.arange(6), TOKENS.shape)
    hidden, _ = model(
        jnp.asarray(TOKENS), positions, lambda q, k, v, _: (attention(q, k, v, mask), None)
    )
    return model.logits(hidden)


def adapted(adapters: Adapters, base: nnx.State) -> jax.Array:
    return logits(lora.attached(nnx.merge(GRAPHDEF, base), adapters, SCALE))


@functools.cache
def random_adapters(pattern: str = "", rank: int = 3) -> Adapters:
    """Of about the size of the weights, so that they matter everywhere."""
    rng = np.random.default_rng(0)
    start = lora.starting_adapters(BASE, pattern, rank, jax.random.key(0))
    draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    return {path: LowRank(*map(draw, factors)) for path, factors in start.items()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("attention|mlp", EVERY[:-1]),
        ("", EVERY),
        ("query|value", (EVERY[0], EVERY[2])),
        ("^head$", ("head",)),
        ("mlp/(gate|up)$", EVERY[4:6]),
    ],
)
def test_a_pattern_chooses_layers(pattern, expected):
    adapters = lora.starting_adapters(BASE, pattern, 2, jax.random.key(0))
    assert set(adapters) == set(expected)
    for path, (a, b) in adapters.items():
        stack = () if path == "head" else (2,)
        assert a.shape[:-2] == b.shape[:-2] == stack and a.shape[-1] == b.shape[-2] == 2
        assert a.dtype == b.dtype == jnp.float32


def test_a_pattern_without_layers_is_refused():
    with pytest.raises(ConfigError, match="'q_proj' fits no linear layer.*layers/attention/query"):
        lora.chosen(BASE, "q_proj")


def test_training_starts_at_the_base():
    start = lora.starting_adapters(BASE, "", 4, jax.random.key(1))
    plain = jax.jit(lambda params: logits(nnx.merge(GRAPHDEF, params)))
    np.testing.assert_allclose(jax.jit(adapted)(start, BASE), plain(BASE), atol=1e-5)
    for a, b in start.values():
        assert not b.any()
        assert np.std(a) == pytest.approx(a.shape[-2] ** -0.5, rel=0.3)
    noise = [np.ravel(factors.a)[:8] for factors in start.values()]
    assert len({x.tobytes() for x in noise}) == len(noise)


def test_merged_weights_compute_the_same_and_equal_numpy():
    adapters = random_adapters()
    merged = lora.merged(BASE, adapters, SCALE)
    before, after = tiny.weights(BASE), tiny.weights(merged)
    for path, weight in before.items():
        layer = path.removesuffix("/kernel")
        if layer in adapters:
            a, b = (np.asarray(x, np.float64) for x in adapters[layer])
            weight = weight + SCALE * a @ b
            assert np.abs(after[path] - before[path]).max() > 0.1
        np.testing.assert_allclose(after[path], weight, atol=1e-6)
    found = np.asarray(jax.jit(adapted)(adapters, BASE))
    plain = jax.jit(lambda params: logits(nnx.merge(GRAPHDEF, params)))(merged)
    np.testing.assert_allclose(found, plain, atol=2e-4)
    for tokens, row in zip(TOKENS, found, strict=True):
        np.testing.assert_allclose(row, tiny.forward(after, tiny.config(), tokens), atol=2e-4)


def test_gradients_are_those_of_the_merged_weights_projected():
    """dA = scale · dW Bᵀ and dB = scale · Aᵀ dW, with dW the dense model's at W + scale · A B."""
    adapters = random_adapters()

    def loss(logits):
        return jnp.mean(jax.nn.log_softmax(logits)[..., 7])

    found = jax.jit(jax.grad(lambda x, base: loss(adapted(x, base))))(adapters, BASE)
    merged = lora.merged(BASE, adapters, SCALE)
    dense = jax.jit(jax.grad(lambda p: loss(logits(nnx.merge(GRAPHDEF, p)))))(merged)
    dense = tiny.weights(dense)
    for path, (a, b) in adapters.items():
        a, b, dw = np.asarray(a, np.float64), np.asarray(b, np.float64), dense[f"{path}/kernel"]
        for own, wanted in zip(
            found[path], (dw @ np.swapaxes(b, -1, -2), np.swapaxes(a, -1, -2) @ dw), strict=True
        ):
            assert np.abs(wanted).max() > 1e-3
            np.testing.assert_allclose(own, SCALE * wanted, atol=1e-5 * np.abs(wanted).max() + 1e-7)


def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), BASE)
    adapters = random_adapters("down")
    merged = lora.merged(low, adapters, SCALE)
    kernel = low["layers"]["mlp"]["down"]["kernel"][...]
    a, b = adapters["layers/mlp/down"]
    exact = np.asarray(kernel, np.float64) + SCALE * np.asarray(a, np.float64) @ np.asarray(b)
    found = merged["layers"]["mlp"]["down"]["kernel"][...]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-6)
    untouched = merged["layers"]["mlp"]["up"]["kernel"][...]
    np.testing.assert_array_equal(untouched, low["layers"]["mlp"]["up"]["kernel"][...])
