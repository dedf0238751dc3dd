"""One tiny model for the tests of learning and sampling, and its forward pass in float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fst_jax.config import ParallelSettings
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import path_of
from fst_jax.slow.learner import Learner
from fst_jax.slow.packing import Sample
from fst_jax.state import Checkpoints
from tests.helpers import tiny_config

VOCABULARY = 60
Weights = dict[str, np.ndarray]


def config(family: str = "qwen3") -> ModelConfig:
    hf = tiny_config(family, VOCABULARY, hidden=16, heads=4, kv_heads=2, head_dim=4)
    return ModelConfig.from_hf(hf)


@functools.cache
def model(
    family: str = "qwen3", dtype: str = "float32", remat: str = "none", seed: int = 0
) -> Decoder:
    """Weights large enough that every part of the model shows in the logits."""
    decoder = Decoder(config(family), dtype=dtype, remat=remat, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(decoder)
    return nnx.merge(graphdef, scattered(params, seed))


def scattered(params: nnx.State, seed: int, scale: float = 0.3) -> nnx.State:
    rng = np.random.default_rng(seed)

    def draw(keys: tuple, leaf: jax.Array) -> jax.Array:
        values = rng.normal(size=leaf.shape) * scale + path_of(keys).endswith("scale")
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, params)


def perturbed(params: nnx.State, seed: int, scale: float) -> nnx.State:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), params
    )


def one_device() -> Mesh:
    return make_mesh(ParallelSettings(), jax.devices()[:1])


def weights(params: nnx.State) -> Weights:
    """Float64 copies by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_of(keys): np.asarray(leaf, np.float64) for keys, leaf in leaves}


def forward(weights: Weights, config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence: Llama, Qwen2 and Qwen3 as their papers write them."""
    tokens = np.asarray(tokens)
    length, head_dim = len(tokens), config.head_dim

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.rms_norm_eps) * scale

    frequency = config.rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.tile(np.arange(length)[:, None] * frequency, 2)[:, None]

    def rotate(x: np.ndarray) -> np.ndarray:
        half = np.concatenate([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], -1)
        return x * np.cos(angle) + half * np.sin(angle)

    x = weights["embedding"][tokens]
    for layer in range(config.num_layers):
        own = {
            path.removeprefix("layers/"): value[layer]
            for path, value in weights.items()
            if path.startswith("layers/")
        }

        def linear(name: str, x: np.ndarray, own: Weights = own) -> np.ndarray:
            return x @ own[f"{name}/kernel"] + own.get(f"{name}/bias", 0.0)

        def heads(name: str, x: np.ndarray, own: Weights = own) -> np.ndarray:
            split = linear(f"attention/{name}", x, own).reshape(length, -1, head_dim)
            scale = own.get(f"attention/{name}_norm/scale")
            return split if scale is None else norm(split, scale)

        h = norm(x, own["input_norm/scale"])
        query, key, value = rotate(heads("query", h)), rotate(heads("key", h)), heads("value", h)
        out = np.zeros_like(query)
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            scores = query[:, head] @ key[:, shared].T / np.sqrt(head_dim)
            scores[np.triu_indices(length, 1)] = -np.inf
            attention = np.exp(scores - scores.max(axis=-1, keepdims=True))
            attention /= attention.sum(axis=-1, keepdims=True)
            out[:, head] = attention @ value[:, shared]
        x = x + linear("attention/output", out.reshape(length, -1))
        h = norm(x, own["mlp_norm/scale"])
        gate = linear("mlp/gate", h)
        x = x + linear("mlp/down", gate / (1 + np.exp(-gate)) * linear("mlp/up", h))
    return norm(x, weights["norm/scale"]) @ weights["head/kernel"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def predictions(
    weights: Weights, config: ModelConfig, context: tuple[int, ...], ids: np.ndarray, t: float = 1.0
) -> np.ndarray:
    """log_softmax(logits / t) [len(ids), V] at the positions that predict each id."""
    tokens = np.concatenate([context, ids]).astype(int)
    return log_softmax(forward(weights, config, tokens)[len(context) - 1 : -1] / t)


def logprobs(
    weights: Weights, config: ModelConfig, context: tuple[int, ...], ids: np.ndarray, t: float = 1.0
) -> np.ndarray:
    return predictions(weights, config, context, ids, t)[np.arange(len(ids)), ids]


def make_samples(
    seed: int = 0, problems: int = 3, prompts: int = 2, per_prompt: int = 2
) -> list[Sample]:
    """Samples of every length, temperature and ratio; the last problem has no variance."""
    rng = np.random.default_rng(seed)
    samples = []
    for problem in range(problems):
        valid = problem < problems - 1
        for _ in range(prompts):
            context = tuple(int(x) for x in rng.integers(VOCABULARY, size=rng.integers(2, 14)))
            for _ in range(per_prompt):
                size = int(rng.integers(1, 8))
                samples.append(
                    Sample(
                        context_ids=context,
                        ids=rng.integers(VOCABULARY, size=size).astype(np.int32),
                        logprobs=-rng.uniform(1, 8, size=size).astype(np.float32),
                        temperature=float(rng.choice([0.5, 1.0])),
                        group=problem,
                        advantage=float(np.float32(rng.normal())) if valid else 0.0,
                        valid=valid,
                    )
                )
    return samples


def restore_newest(learner: Learner, checkpoints: Checkpoints) -> None:
    """Have a learner take over what was saved last."""
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), learner.saved
    )
    saved = checkpoints.restore(like)
    checkpoints.close()
    assert saved is not None
    learner.restore(saved.arrays)
