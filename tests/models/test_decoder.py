"""The decoder against numpy in float64, and its contract: cache, remat, dtypes, paths."""

import functools
import tempfile
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fst_jax.config import Remat
from fst_jax.models.attention import attention
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder, Linear
from fst_jax.models.huggingface import load_model
from fst_jax.models.rope import inverse_frequencies
from fst_jax.parallel.sharding import path_of
from tests.helpers import random_tensors, tiny_config, tiny_model_folder

VARIANTS = {
    "llama": {"family": "llama"},
    "llama-biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen2": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"family": "qwen3", "head_dim": 16},
}
TOKENS = np.array([[5, 9, 250, 3, 77, 31], [1, 2, 3, 4, 5, 6]])
POSITIONS = np.array([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]])


def oracle(config: ModelConfig, weights: dict, tokens: np.ndarray, positions: np.ndarray):
    """Logits of one causal sequence, straight from the tensors of the folder."""

    def norm(x, name):
        scale = weights[name + ".weight"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def linear(x, name):
        return x @ weights[name + ".weight"].T.astype(float) + weights.get(name + ".bias", 0)

    def heads(x, name):
        split = linear(x, name + "_proj").reshape(len(x), -1, config.head_dim)
        return norm(split, name + "_norm") if config.qk_norm and name[-1] in "qk" else split

    def rotate(x):
        angles = positions[:, None, None] * inverse_frequencies(config.rope, config.head_dim)[0]
        a, b = np.split(x, 2, -1)
        return np.concatenate(
            [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
        )

    x = weights["model.embed_tokens.weight"][tokens].astype(float)
    causal = np.tril(np.ones((len(tokens), len(tokens)), bool))
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        y = norm(x, layer + "input_layernorm")
        q, k = (rotate(heads(y, f"{layer}self_attn.{n}")) for n in "qk")
        v = heads(y, layer + "self_attn.v")
        group = config.num_heads // config.num_kv_heads
        scores = np.einsum("thd,shd->hts", q, k.repeat(group, 1)) / np.sqrt(config.head_dim)
        scores = np.exp(np.where(causal, scores, -np.inf))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hts,shd->thd", scores, v.repeat(group, 1)).reshape(len(tokens), -1)
        x = x + linear(mixed, layer + "self_attn.o_proj")
        y = norm(x, layer + "post_attention_layernorm")
        gate = linear(y, layer + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, layer + "mlp.up_proj"),
                       layer + "mlp.down_proj")  # fmt: skip
    tied = config.tie_word_embeddings
    head = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    return norm(x, "model.norm") @ head.T.astype(float)


def full_attend(length: int):
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    return lambda query, key, value, _: (attention(query, key, value, mask), (key, value))


@functools.cache
def loaded(variant: str, **options) -> Decoder:
    with tempfile.TemporaryDirectory() as folder:
        return load_model(tiny_model_folder(folder, **VARIANTS[variant]), **options)


@functools.cache
def run(model: Decoder):
    """Hidden states, keys and values, and logits of TOKENS."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def forward(params):
        model = nnx.merge(graphdef, params)
        hidden, cache = model(jnp.asarray(TOKENS), jnp.asarray(POSITIONS), full_attend(6))
        return hidden, cache, model.logits(hidden)

    return forward(params)


@pytest.fixture(params=VARIANTS)
def model(request):
    return loaded(request.param)


def test_logits_equal_numpy(model):
    weights = random_tensors(model.config)
    *_, logits = run(model)
    assert logits.dtype == jnp.float32
    for got, tokens, positions in zip(logits, TOKENS, POSITIONS, strict=True):
        want = oracle(model.config, weights, tokens, positions)
        assert np.abs(want).max() > 1  # or the comparison would say little
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_stepwise_decoding_with_a_cache_equals_the_full_pass(model):
    graphdef, params = nnx.split(model)
    hidden, (keys, values), _ = run(model)
    assert keys.shape == (2, 2, 6, 2, model.config.head_dim)  # [L, B, T, Hkv, Dh]

    @jax.jit
    def step(params, cache, token, position, index):
        def attend(query, key, value, layer):
            layer = jax.tree.map(lambda c, new: c.at[:, index].set(new[:, 0]), layer, (key, value))
            seen = jnp.broadcast_to(jnp.arange(6) <= index, (2, 1, 6))
            return attention(query, *layer, seen), layer

        return nnx.merge(graphdef, params)(token[:, None], position[:, None], attend, cache)

    prompt = 3
    cache = jax.tree.map(lambda c: c.at[:, :, prompt:].set(0.0), (keys, values))
    for index in range(prompt, 6):
        got, cache = step(params, cache, TOKENS[:, index], POSITIONS[:, index], index)
        np.testing.assert_allclose(got[:, 0], hidden[:, index], atol=2e-5)
    np.testing.assert_allclose(cache[0], keys, atol=2e-5)


def gradient_program(remat: str) -> tuple:
    """The gradient of a loss over TOKENS, to be called with the parameters, and those."""
    graphdef, params = nnx.split(loaded("qwen3", remat=remat))

    def loss(params):
        model = nnx.merge(graphdef, params)
        hidden, _ = model(jnp.asarray(TOKENS), jnp.asarray(POSITIONS), full_attend(6))
        return (model.logits(hidden) ** 2).mean()

    return jax.grad(loss), params


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_remat_changes_no_gradient(remat):
    plain, found = (jax.jit(f)(p) for f, p in map(gradient_program, ("none", remat)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, found)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(plain))


def test_remat_computes_anew_what_it_says():
    programs = {name: str(jax.make_jaxpr(f)(p)) for name, (f, p) in
                {name: gradient_program(name) for name in get_args(Remat)}.items()}  # fmt: skip
    products = {name: text.count("dot_general") for name, text in programs.items()}
    # `full` leaves out the last of seven layers, whose output no gradient needs; attention has two.
    assert products["dots"] == products["none"] + 2
    assert products["full"] == products["offload"] == products["none"] + 6 + 2
    assert ["Host" in programs[name] or "pinned_host" in programs[name] for name in products] == [
        False, False, False, True
    ]  # fmt: skip


def test_one_state_of_stacked_parameters_at_readable_paths():
    hf = tiny_config("llama", layers=3, attention_bias=True, mlp_bias=True)
    config = ModelConfig.from_hf(hf)
    _, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    shapes = {
        path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    linears = {"attention/query": (32, 32), "attention/key": (32, 16), "attention/value": (32, 16),
               "attention/output": (32, 32), "mlp/gate": (32, 64), "mlp/up": (32, 64),
               "mlp/down": (64, 32)}  # fmt: skip
    expected = {"embedding": (300, 32), "norm/scale": (32,), "head/kernel": (32, 300),
                "layers/input_norm/scale": (3, 32), "layers/mlp_norm/scale": (3, 32)}  # fmt: skip
    for name, shape in linears.items():
        expected |= {f"layers/{name}/kernel": (3, *shape), f"layers/{name}/bias": (3, shape[1])}
    assert shapes == expected


@pytest.mark.parametrize(("dtype", "error"), [("float32", 5e-7), ("bfloat16", 2e-3)])
def test_long_sums_round_little(dtype, error):
    """One running sum over the 1536 products would be twice as far off in float32: 7e-7."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 52, 1536)), rng.normal(size=(1536, 576)) / 1536**0.5
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    linear = Linear(1536, 576, bias=False, param_dtype=dtype, rngs=nnx.Rngs(0))
    linear.kernel[...] = kernel
    model = Decoder(ModelConfig.from_hf(tiny_config()), rngs=nnx.Rngs(0), platform="cpu")
    linear.matmul = next(m for _, m in nnx.iter_graph(model) if isinstance(m, Linear)).matmul
    got = jax.jit(linear)(x)
    want = np.asarray(x, float) @ np.asarray(kernel, float)
    assert got.dtype == dtype
    assert np.sqrt(np.mean((np.asarray(got, float) - want) ** 2)) < error


def test_layers_start_different():
    config = ModelConfig.from_hf(tiny_config())
    params = jax.jit(lambda: nnx.state(Decoder(config, rngs=nnx.Rngs(0))))()
    first, second = params["layers"]["mlp"]["gate"]["kernel"][...]
    assert np.abs(first - second).max() > 0.01
    assert np.std(first) == pytest.approx(0.02, rel=0.1)


def test_dtypes():
    exact, low = loaded("qwen3"), loaded("qwen3", dtype=jnp.bfloat16)
    assert {x.dtype.name for x in jax.tree.leaves(nnx.state(low))} == {"float32"}
    (hidden, _, want), (low_hidden, _, got) = run(exact), run(low)
    assert [x.dtype.name for x in (hidden, low_hidden)] == ["float32", "bfloat16"]
    assert got.dtype == jnp.float32
    assert np.abs(got - want).mean() < 0.1 * np.abs(want).mean()


def test_products_are_chosen_when_the_model_is_made():
    """And not while it runs: no conditional is left in a gradient through the layers' loop."""
    config = ModelConfig.from_hf(tiny_config(layers=6))
    tokens, positions = jnp.asarray(TOKENS), jnp.asarray(POSITIONS)
    outputs = []
    for platform in ("cpu", "tpu"):
        graphdef, params = nnx.split(Decoder(config, platform=platform, rngs=nnx.Rngs(0)))

        def total(params: nnx.State, graphdef: nnx.GraphDef = graphdef) -> jax.Array:
            hidden, _ = nnx.merge(graphdef, params)(tokens, positions, full_attend(6))
            return (hidden**3).sum()

        program = jax.jit(jax.value_and_grad(total)).lower(params)
        assert "stablehlo.while" in program.as_text()
        assert "stablehlo.case" not in program.as_text()
        outputs.append(program.compile()(params)[0])
    np.testing.assert_allclose(*outputs, rtol=1e-4)
