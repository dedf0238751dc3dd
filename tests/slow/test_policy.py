"""What is trained and what is frozen: LoRA, an offloaded reference, bfloat16 over float32."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from fst_jax.config import CheckpointSettings, ParallelSettings, SlowSettings
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import on_devices, path_of, replicated
from fst_jax.slow.learner import Learner
from fst_jax.slow.packing import pack
from fst_jax.slow.policy import whole_weights
from fst_jax.state import Checkpoints
from tests.slow import tiny

SETTINGS = SlowSettings(
    kl_coefficient=1.0, kl_estimator="k2", learning_rate=1e-2, warmup_steps=1, max_grad_norm=1e9,
    micro_batch_rows=8, head_chunk=64,
)  # fmt: skip
LORA = dataclasses.replace(SETTINGS, lora_rank=3, lora_alpha=6.0, lora_layers="")
SCALE = 2.0


def make_learner(
    settings: SlowSettings, mesh: Mesh | None = None, dtype: str = "float32"
) -> Learner:
    graphdef, base = nnx.split(tiny.model(dtype=dtype))
    owned = nnx.merge(graphdef, jax.tree.map(jnp.copy, base))
    return Learner(owned, settings, mesh or tiny.one_device(), seed=5)


def make_batch(mesh: Mesh | None = None):
    return pack(tiny.make_samples(), 2, SETTINGS.micro_batch_rows, mesh or tiny.one_device())


def with_weight(learner: Learner) -> Learner:
    """The learner, its adapters moved away from zero."""
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: jax.device_put(0.3 * rng.normal(size=x.shape).astype(np.float32), x.sharding),
        learner.state.params,
    )
    learner.state = learner.state._replace(params=moved)
    return learner


def host(tree) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def adapting() -> Learner:
    return make_learner(LORA)


def test_lora_starts_at_the_base_and_moves_adapters_alone(adapting):
    base = host(adapting.reference)
    for found, wanted in zip(host(adapting.params), base, strict=True):
        np.testing.assert_array_equal(found, wanted)
    first = adapting.step(make_batch())
    assert first["kl_k1"] == pytest.approx(0, abs=1e-6) and first["grad_norm"] > 0
    assert first["nonfinite_steps"] == 0
    second = adapting.step(make_batch())
    assert second["kl_k3"] > 1e-4  # moved, and measured from the base
    for found, wanted in zip(host(adapting.reference), base, strict=True):
        np.testing.assert_array_equal(found, wanted)
    merged = host(adapting.params)
    assert max(np.abs(x - y).max() for x, y in zip(merged, base, strict=True)) > 1e-3
    assert adapting.params is adapting.params  # merged once a step
    assert adapting._train_step._cache_size() == 1


def test_several_updates_and_the_kl_in_the_reward_know_the_adapters():
    """Ratios before the first update are to θ0 with its adapters, and so is a rollout's KL."""
    learner = with_weight(make_learner(dataclasses.replace(LORA, objective="grpo", epochs=2)))
    whole = make_learner(SETTINGS)
    whole.state = whole.state._replace(params=learner.params)
    found, wanted = (each.log_ratios(make_batch()) for each in (learner, whole))
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    first, second = learner.step(make_batch()), whole.step(make_batch())
    assert first["mismatch_k3"] == pytest.approx(second["mismatch_k3"], rel=1e-3)
    assert first["flops"] / second["flops"] == pytest.approx((2 * 6 + 2) / 8)


def test_the_optimiser_knows_adapters_alone(adapting):
    trained = sum(x.size for x in host(adapting.state.params))
    assert sum(x.size for x in host(adapting.state.optimizer)) == 2 * trained + 2  # and two counts
    whole = sum(x.size for x in host(adapting.reference))
    assert (
        trained == sum(x.size for factors in adapting.adapters.values() for x in factors)
        and trained < whole / 2
    )


def test_loss_and_gradient_are_those_of_the_merged_model_projected():
    """A step with plain SGD's information: grad_norm, and every metric, from the dense learner."""
    adapters = with_weight(make_learner(LORA))
    factors = jax.tree.map(np.asarray, adapters.adapters)
    dense = make_learner(SETTINGS)
    dense.state = dense.state._replace(params=jax.tree.map(jnp.copy, adapters.params))
    before = tiny.weights(dense.params)
    found, wanted = adapters.step(make_batch()), dense.step(make_batch())
    for name in ("loss", "kl_k1", "kl_k2", "kl_k3", "entropy", "mismatch_k3", "ratio_max"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name
    assert wanted["kl_k2"] > 1e-3
    # Adam's first moment after one step is (1 − b1) times the gradient.
    moments = {
        path_of(keys).split("mu/")[-1]: np.asarray(x, np.float64) / (1 - SETTINGS.adam_b1)
        for state in (dense.state.optimizer, adapters.state.optimizer)
        for keys, x in jax.tree_util.tree_leaves_with_path(state)
        if "/mu/" in path_of(keys)
    }
    squares = 0.0
    for path, (a, b) in factors.items():
        dw = moments[f"{path}/kernel"]
        assert dw.shape == before[f"{path}/kernel"].shape
        own = {"a": SCALE * dw @ np.swapaxes(b, -1, -2), "b": SCALE * np.swapaxes(a, -1, -2) @ dw}
        for letter, gradient in own.items():
            got = moments[f"{path}/{letter}"]
            np.testing.assert_allclose(got, gradient, atol=2e-5 * np.abs(gradient).max())
            squares += np.sum(gradient**2)
    assert found["grad_norm"] == pytest.approx(np.sqrt(squares), rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        dataclasses.replace(LORA, optimizer="adamw_bfloat16"),
        dataclasses.replace(SETTINGS, optimizer="adafactor"),
    ],
    ids=["lora and adamw_bfloat16", "adafactor"],
)
def test_a_resumed_learner_goes_on_bit_for_bit(settings, tmp_path):
    batch, straight = make_batch(), make_learner(settings)
    for _ in range(2):
        straight.step(batch)
    saved = Checkpoints(tmp_path, CheckpointSettings(keep=1))
    saved.save(2, tuple(straight.state), {})
    saved.wait()
    wanted = [straight.step(batch) for _ in range(2)]
    resumed = make_learner(settings)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tuple(resumed.state)
    )
    restored = saved.restore(like)
    saved.close()
    assert restored is not None
    resumed.state = type(resumed.state)(*restored.arrays)
    assert [resumed.step(batch) for _ in range(2)] == wanted
    for found, other in zip(host(resumed.state), host(straight.state), strict=True):
        np.testing.assert_array_equal(found, other)
    for found, other in zip(host(resumed.params), host(straight.params), strict=True):
        np.testing.assert_array_equal(found, other)


def test_an_offloaded_reference_waits_in_host_memory_and_counts_the_same():
    plain, offloaded = (
        make_learner(dataclasses.replace(SETTINGS, reference=where))
        for where in ("copy", "offload")
    )
    for learner, kind in ((plain, "device"), (offloaded, "pinned_host")):
        found = {x.sharding.memory_kind for x in jax.tree.leaves(learner.reference)}
        assert found == {kind}
    assert on_devices(plain.reference) is plain.reference
    for _ in range(2):
        assert offloaded.step(make_batch()) == plain.step(make_batch())
    for found, wanted in zip(host(offloaded.state), host(plain.state), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_bfloat16_computes_over_float32_weights_and_moments():
    learner = make_learner(dataclasses.replace(SETTINGS, learning_rate=1e-5), dtype="bfloat16")
    exact = make_learner(SETTINGS)  # the gradient is the same at any rate
    start = host(learner.params)
    found, wanted = learner.step(make_batch()), exact.step(make_batch())
    assert found["grad_norm"] != wanted["grad_norm"]  # products were in bfloat16
    assert found["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.1)
    floats = [x for x in jax.tree.leaves(learner.state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype.name for x in floats} == {"float32"}
    # Steps far below what bfloat16 resolves of a weight are kept.
    for _ in range(4):
        learner.step(make_batch())
    moved = np.concatenate([
        np.abs(new - old).ravel() for new, old in zip(host(learner.params), start, strict=True)
    ])  # fmt: skip
    assert np.mean((moved > 1e-6) & (moved < 1e-4)) > 0.9


def test_lora_over_a_bfloat16_base_keeps_float32_adapters():
    graphdef, base = nnx.split(tiny.model(dtype="bfloat16"))
    low = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), base))
    learner = Learner(low, LORA, tiny.one_device())
    metrics = learner.step(make_batch())
    assert metrics["nonfinite_steps"] == 0 and metrics["grad_norm"] > 0
    assert {x.dtype.name for x in jax.tree.leaves(learner.state.params)} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(learner.params)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(learner.reference)} == {"bfloat16"}


def test_merged_weights_take_the_place_of_those_merged_before():
    learner = make_learner(LORA)
    with_weight(learner)
    before = learner.params
    assert learner.params is before
    (old, *_), frozen = jax.tree.leaves(before), host(learner.reference)
    learner.step(make_batch())
    after = learner.params
    assert old.is_deleted() and not any(x.is_deleted() for x in jax.tree.leaves(after))
    wanted = whole_weights(learner.adapters, learner.reference, LORA)
    for own, other in zip(host(after), host(wanted), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)
    for own, other in zip(host(learner.reference), frozen, strict=True):
        np.testing.assert_array_equal(own, other)


def two_steps(mesh: Mesh, settings: SlowSettings) -> tuple[list[dict], list[np.ndarray]]:
    learner = make_learner(settings, mesh)
    if settings.lora_rank:
        with_weight(learner)
    metrics = [learner.step(make_batch(mesh)) for _ in range(2)]
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(learner.params)
    if settings.lora_rank:
        placed = {path: factors.b.sharding.spec for path, factors in learner.adapters.items()}
        assert placed["layers/mlp/gate"][2] == "tensor" and placed["layers/mlp/down"][2] == "fsdp"
    return metrics, host(whole)


def meshes() -> None:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    eight = make_mesh(ParallelSettings(mesh={"fsdp": 4, "tensor": 2}))
    # Adafactor's steps have the size of gradients where Adam's have the size of rounding.
    smooth = dataclasses.replace(LORA, optimizer="adafactor", learning_rate=1e-3)
    offload = dataclasses.replace(
        SETTINGS, optimizer="adafactor", learning_rate=1e-3, reference="offload"
    )
    for settings in (smooth, offload):
        (found, weights), (wanted, exact) = (
            two_steps(mesh, settings) for mesh in (eight, tiny.one_device())
        )
        for own, other in zip(found, wanted, strict=True):
            for name in ("loss", "grad_norm", "kl_k2", "entropy"):
                np.testing.assert_allclose(own[name], other[name], rtol=2e-4)
        for own, other in zip(weights, exact, strict=True):
            np.testing.assert_allclose(own, other, atol=1e-5)


@pytest.mark.slow
def test_eight_devices_train_adapters_as_one_does(on_devices):
    on_devices(meshes)
