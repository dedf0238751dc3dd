"""Eight virtual devices in any mesh, and two processes, learn and sample what one device does."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from fst_jax.compiles import compiles
from fst_jax.config import ParallelSettings, SlowSettings
from fst_jax.parallel.distributed import start
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import replicated
from fst_jax.rollout.engine import Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.slow.learner import Learner
from fst_jax.slow.packing import pack
from tests.processes import call, free_port, run_together
from tests.slow import tiny

SETTINGS = SlowSettings(
    kl_coefficient=0.1, learning_rate=1e-3, warmup_steps=1, micro_batch_rows=8, head_chunk=64
)


CLIPPING = replace(SETTINGS, objective="gspo", clip_low=0.1, clip_high=0.1, epochs=2)


def make_learner(mesh: Mesh, settings: SlowSettings = SETTINGS) -> Learner:
    graphdef, base = nnx.split(tiny.model())
    return Learner(nnx.merge(graphdef, jax.tree.map(jnp.copy, base)), settings, mesh)


def learn_and_sample(mesh: Mesh) -> dict:
    """Three updates, then samples of the new weights; and one step of two updates by GSPO."""
    learner = make_learner(mesh)
    metrics = []
    for seed in range(3):
        batch = pack(tiny.make_samples(seed), 2, SETTINGS.micro_batch_rows, mesh)
        metrics.append(learner.step(batch))
    clipping = make_learner(mesh, CLIPPING)
    metrics.append(clipping.step(batch))
    assert clipping._train_step._cache_size() == 1
    engine = LocalEngine(tiny.model(), mesh, batch_size=16)
    engine.update_weights(learner.params, version=2)
    groups = engine.generate(
        [
            Request((5, 9, 2, 8), n=2, max_new_tokens=6, stop_ids=(3, 17), seed=1),
            Request((7,), n=2, max_new_tokens=9, temperature=0.5, seed=2),
            Request(tuple(range(20)), n=2, max_new_tokens=3, temperature=0.0, seed=3),
        ]
    )
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(learner.params)
    params = [np.asarray(x).ravel() for x in jax.tree.leaves(jax.device_get(whole))]
    return {
        "metrics": metrics,
        "log_ratios": learner.log_ratios(batch).tolist(),
        "params": np.concatenate(params).tolist(),
        "ids": [[c.ids.tolist() for c in group] for group in groups],
        "logprobs": [p for group in groups for c in group for p in c.logprobs.tolist()],
    }


def assert_same(found: dict, wanted: dict) -> None:
    start = np.concatenate([np.ravel(x) for x in jax.tree.leaves(nnx.state(tiny.model()))])
    moved = np.abs(np.subtract(wanted["params"], start))
    assert np.mean(moved > 1e-3) > 0.5  # or agreement would say little
    np.testing.assert_allclose(found["params"], wanted["params"], rtol=0, atol=1e-5)
    for ours, theirs in zip(found["metrics"], wanted["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    np.testing.assert_allclose(found["log_ratios"], wanted["log_ratios"], atol=1e-3)
    assert found["ids"] == wanted["ids"]
    np.testing.assert_allclose(found["logprobs"], wanted["logprobs"], atol=1e-4)


def meshes() -> None:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    wanted = learn_and_sample(tiny.one_device())
    for sizes in (
        {"fsdp": 8},
        {"fsdp": 4, "tensor": 2},
        {"data": 2, "fsdp": 2, "context": 2},
    ):
        mesh = make_mesh(ParallelSettings(mesh=sizes))
        assert_same(learn_and_sample(mesh), wanted)
    steps_without_compiling(mesh)


def steps_without_compiling(mesh: Mesh) -> None:
    """30 steps over varied lengths compile nothing, once each shape has occurred."""
    learner = make_learner(mesh)
    batches = [
        pack(tiny.make_samples(seed, per_prompt=1 + seed % 4), 4, 8, mesh) for seed in range(30)
    ]
    first = {str(jax.tree.map(np.shape, batch)): batch for batch in batches}
    assert len(first) == 2
    for batch in first.values():
        learner.step(batch)
    before = compiles()
    for batch in batches:
        learner.step(batch)
    assert compiles() == before


def test_nothing_is_compiled_after_warm_up():
    steps_without_compiling(tiny.one_device())


@pytest.mark.slow
def test_eight_devices(on_devices):
    on_devices(meshes)


def one_of_two(index: str, port: str, out: str) -> None:
    """One process of two, each with four devices of a global mesh."""
    sizes = {"data": 2, "fsdp": 2, "context": 2}
    settings = ParallelSettings(sizes, f"127.0.0.1:{port}", processes=2, process=int(index))
    start(settings)
    mesh = make_mesh(settings)
    assert jax.process_count() == 2 and mesh.size == 8
    Path(out).write_text(json.dumps(learn_and_sample(mesh)))
    jax.distributed.shutdown()


@pytest.mark.slow
def test_two_processes(tmp_path):
    outputs = [tmp_path / "0.json", tmp_path / "1.json"]
    port = free_port()
    own = [call(one_of_two, index, port, output) for index, output in enumerate(outputs)]
    run_together(own, tmp_path, devices=4)
    wanted = learn_and_sample(tiny.one_device())
    for output in outputs:
        assert_same(json.loads(output.read_text()), wanted)
