"""Eight virtual devices, and two processes, learn and sample what one device does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from fst_jax.config import ParallelSettings, SlowSettings
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import replicated
from fst_jax.rollout.engine import Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.slow.learner import Learner
from fst_jax.slow.packing import pack
from tests.slow import tiny

ROOT = Path(__file__).parents[2]
SETTINGS = SlowSettings(
    kl_coefficient=0.1, learning_rate=1e-3, warmup_steps=1, micro_batch_rows=8, head_chunk=64
)


def learn_and_sample(mesh: Mesh) -> dict:
    """Two updates, then samples of the new weights."""
    graphdef, base = nnx.split(tiny.model())
    learner = Learner(nnx.merge(graphdef, jax.tree.map(jnp.copy, base)), SETTINGS, mesh)
    batch = pack(tiny.make_samples(), 1, SETTINGS.micro_batch_rows, mesh)
    metrics = [learner.step(batch), learner.step(batch)]
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
        "loss": [m["loss"] for m in metrics],
        "grad_norm": [m["grad_norm"] for m in metrics],
        "params": np.concatenate(params).tolist(),
        "ids": [[c.ids.tolist() for c in group] for group in groups],
        "logprobs": [p for group in groups for c in group for p in c.logprobs.tolist()],
    }


def assert_same(found: dict, wanted: dict) -> None:
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], wanted["grad_norm"], rtol=1e-5)
    # Adam makes whole steps of ±lr even of gradients that are rounding alone.
    gap = np.abs(np.subtract(found["params"], wanted["params"]))
    assert np.mean(gap > 2e-6) < 0.01 and gap.max() <= 4 * SETTINGS.learning_rate
    assert found["ids"] == wanted["ids"]
    np.testing.assert_allclose(found["logprobs"], wanted["logprobs"], atol=1e-4)


def meshes() -> None:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    wanted = learn_and_sample(tiny.one_device())
    for sizes in ({"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}):
        assert_same(learn_and_sample(make_mesh(ParallelSettings(mesh=sizes))), wanted)


@pytest.mark.slow
def test_eight_devices(on_devices):
    on_devices(meshes)


def one_of_two(index: str, port: str, out: str) -> None:
    """One process of two, each with two devices of a global mesh."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index), initialization_timeout=60)
    mesh = make_mesh(ParallelSettings(mesh={"data": 2, "fsdp": 2}))
    assert jax.process_count() == 2 and mesh.size == 4
    Path(out).write_text(json.dumps(learn_and_sample(mesh)))
    jax.distributed.shutdown()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_two_processes(tmp_path):
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    code = "import sys; from tests.slow.test_devices import one_of_two; one_of_two(*sys.argv[1:])"
    port = str(free_port())
    processes, outputs = [], [tmp_path / "0.json", tmp_path / "1.json"]
    try:
        for index, out in enumerate(outputs):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, str(index), port, str(out)],
                    cwd=ROOT,
                    env=environment,
                    stdout=(tmp_path / f"{index}.log").open("wb"),
                    stderr=subprocess.STDOUT,
                )
            )
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "".join((tmp_path / f"{index}.log").read_text() for index in range(2))
    assert codes == [0, 0], logs
    wanted = learn_and_sample(tiny.one_device())
    for out in outputs:
        assert_same(json.loads(out.read_text()), wanted)
