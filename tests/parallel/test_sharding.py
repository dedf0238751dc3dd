"""Every parameter of the decoder has one rule, and sharded arrays compute the same."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fst_jax.config import ParallelSettings
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder
from fst_jax.models.lora import starting_adapters
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import RULES, batch_shardings, path_of, replicated, shardings, spec

CONFIG = ModelConfig(
    family="qwen3",
    vocab_size=48,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    qk_norm=True,
)


def decoder(**changes: object) -> Decoder:
    return Decoder(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))


def leaves(tree: object) -> dict[str, jax.Array]:
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def on(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    return NamedSharding(mesh, spec(path, shape, mesh))


def test_every_parameter_has_exactly_one_rule():
    params = nnx.state(decoder())
    adapters = starting_adapters(params, "", 2, jax.random.key(0))
    paths = leaves(params) | leaves(adapters)
    used = set()
    for path, leaf in paths.items():
        rules = [(pattern, axes) for pattern, axes in RULES if re.fullmatch(pattern, path)]
        assert len(rules) == 1, path
        assert len(rules[0][1]) == leaf.ndim, path
        used.add(rules[0][0])
    others = ("ns_coeffs", "v_(row|col)", "batch/", "activations/", "sampler/")  # optimisers' first
    assert used == {pattern for pattern, _ in RULES if not pattern.startswith(others)}


def test_unknown_paths_are_refused():
    mesh = make_mesh(ParallelSettings(), jax.devices()[:1])
    with pytest.raises(KeyError, match="no sharding rule for layers/other/kernel"):
        spec("layers/other/kernel", (2, 4, 4), mesh)
    with pytest.raises(KeyError, match="of shape"):
        spec("embedding", (4, 4, 4), mesh)


def shards_and_computes_alike() -> None:
    mesh = make_mesh(ParallelSettings(mesh={"data": 2, "fsdp": 2, "tensor": 2}))
    graphdef, params = nnx.split(decoder())
    placed = shardings(params, mesh)
    specs = {path: sharding.spec for path, sharding in leaves(placed).items()}
    assert specs["embedding"] == PartitionSpec("tensor", "fsdp")
    assert specs["layers/mlp/down/kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert specs["norm/scale"] == PartitionSpec(None)
    # An axis that does not divide a dimension is dropped there, and only there.
    assert spec("embedding", (49, 16), mesh) == PartitionSpec(None, "fsdp")

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = optimizer.init(params)
    moments = leaves(shardings(state, mesh))
    found = [path for path in moments if path.endswith("layers/mlp/gate/kernel")]
    assert len(found) == 2  # first and second moment
    for path in found:
        assert moments[path].spec == PartitionSpec(None, "fsdp", "tensor")
    assert moments[next(path for path in moments if path.endswith("count"))].spec == PartitionSpec()

    tokens = np.arange(8 * 6).reshape(8, 6) % CONFIG.vocab_size

    def loss(params: nnx.State, tokens: jax.Array) -> jax.Array:
        def attend(query: jax.Array, key: jax.Array, value: jax.Array, _: None) -> tuple:
            return jax.nn.dot_product_attention(query, key, value, is_causal=True), None

        model = nnx.merge(graphdef, params)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = model(tokens, positions, attend)
        logits = model.logits(hidden)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def step(params: nnx.State, state: optax.OptState, tokens: jax.Array) -> tuple:
        value, gradients = jax.value_and_grad(loss)(params, tokens)
        updates, state = optimizer.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), state

    expected = step(params, state, tokens)
    sharded = step(
        jax.device_put(params, placed),
        jax.device_put(state, shardings(state, mesh)),
        jax.device_put(tokens, on(mesh, "activations/tokens", tokens.shape)),
    )
    assert len(sharded[1]["embedding"][...].sharding.device_set) == 8
    for one, eight in zip(jax.tree.leaves(expected), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(one, eight, rtol=2e-3, atol=2e-5)
    batch = batch_shardings({"tokens": np.zeros((3, 8, 5))}, mesh)["tokens"]
    assert batch.shard_shape((3, 8, 5)) == (3, 2, 5)
    assert jax.device_put(1.0, replicated(mesh)).sharding.is_fully_replicated


def test_eight_devices_compute_what_one_does(on_devices):
    on_devices(shards_and_computes_alike)


def batches_activations_and_caches() -> None:
    mesh = make_mesh(ParallelSettings(mesh={"data": 2, "tensor": 2, "context": 2}))

    def part(path: str, *shape: int) -> tuple[int, ...]:
        return on(mesh, path, shape).shard_shape(shape)

    assert part("batch/tokens", 3, 4, 64) == (3, 2, 32)
    assert part("batch/tokens", 3, 4, 63) == (3, 2, 63)  # no whole parts
    assert part("activations/hidden", 4, 64, 16) == (2, 32, 16)
    assert part("activations/heads", 4, 64, 2, 8) == (2, 32, 1, 8)
    # Sequences that are sampled go over the context axis as well.
    assert part("sampler/contexts/keys", 5, 4, 2, 8, 64) == (5, 1, 1, 8, 64)
    assert part("sampler/slots/values", 5, 4, 3, 2, 64, 8) == (5, 1, 3, 1, 64, 8)
    assert part("sampler/slots/logits", 4, 3, 48) == (1, 3, 48)


def test_what_is_computed_is_split_by_the_table(on_devices):
    on_devices(batches_activations_and_caches)
