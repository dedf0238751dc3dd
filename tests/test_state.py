"""Checkpoints come back bit for bit, to any sharding, and survive damage."""

import contextlib
import os
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fst_jax.checksums import checksums
from fst_jax.config import CheckpointSettings, ParallelSettings
from fst_jax.errors import RunError
from fst_jax.parallel.distributed import start
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import shardings
from fst_jax.state import Checkpoints
from tests.processes import call, free_port, run_together


class Small(nnx.Module):
    """Two parameters with paths of the decoder, one of them in bfloat16."""

    def __init__(self, seed: int):
        keys = jax.random.split(jax.random.key(seed))
        self.embedding = nnx.Param(jax.random.normal(keys[0], (16, 8)))
        self.head = nnx.Linear(8, 16, use_bias=False, rngs=nnx.Rngs(keys[1]))
        self.head.kernel[...] = self.head.kernel[...].astype(jnp.bfloat16)


def arrays_of(seed: int) -> dict:
    params = nnx.state(Small(seed), nnx.Param)
    return {"params": params, "optimizer": optax.adamw(1e-3).init(params)}


def abstract(tree: object) -> object:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(one: object, other: object) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", CheckpointSettings(keep=2))
    yield opened
    opened.close()


def test_bit_exact(checkpoints):
    assert checkpoints.restore(arrays_of(0)) is None
    rng = np.random.default_rng(7)
    rng.random(5)
    host = {
        "rng": rng.bit_generator.state,
        "pool": {"prompts": [{"text": "größer\n", "scores": {"a": 0.1}}]},
        "metrics_offset": 2**40,
        "version": 3,
        "none": None,
    }
    arrays = arrays_of(1)
    checkpoints.save(4, arrays, host)
    checkpoints.wait()
    saved = checkpoints.restore(abstract(arrays_of(0)))
    assert saved is not None and saved.step == 4
    assert_same(saved.arrays, arrays)
    assert isinstance(saved.arrays["params"], nnx.State)
    assert saved.host == host
    again = np.random.default_rng(0)
    again.bit_generator.state = saved.host["rng"]
    assert again.random() == rng.random()


def test_the_newest_are_kept(checkpoints, tmp_path):
    for step in range(4):
        checkpoints.save(step, {"x": jnp.full((3,), step)}, {"step": step})
    checkpoints.wait()
    folders = {entry.name for entry in (tmp_path / "checkpoints").iterdir()}
    assert folders == {"2", "3"}
    saved = checkpoints.restore({"x": jnp.zeros((3,), jnp.int32)})
    assert saved is not None and saved.step == 3 and saved.host == {"step": 3}


def test_arrays_may_be_donated_while_they_are_saved(checkpoints):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(jnp.zeros((4096, 1024)))
    checkpoints.save(0, {"x": x}, {})
    for _ in range(5):
        x = advance(x)
    x.block_until_ready()
    checkpoints.wait()
    saved = checkpoints.restore({"x": jnp.ones((4096, 1024))})
    assert saved is not None and not np.asarray(saved.arrays["x"]).any()


def test_half_written_and_damaged_steps_are_passed_over(tmp_path):
    folder = tmp_path / "checkpoints"
    first = Checkpoints(folder, CheckpointSettings(keep=5))
    for step in (1, 2, 3):
        first.save(step, {"x": jnp.full((1000,), step)}, {"step": step})
    first.close()
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "3" / "arrays")
    for file in (folder / "2" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = Checkpoints(folder, CheckpointSettings(keep=5))
    saved = again.restore({"x": jnp.zeros((1000,), jnp.int32)})
    assert saved is not None and saved.step == 1 and saved.host == {"step": 1}
    assert (folder / "3.damaged").is_dir() and (folder / "2.damaged").is_dir()
    again.save(2, {"x": jnp.full((1000,), 9)}, {"step": 2})
    again.close()
    last = Checkpoints(folder, CheckpointSettings(keep=5))
    saved = last.restore({"x": jnp.zeros((1000,), jnp.int32)})
    assert saved is not None and saved.step == 2 and int(saved.arrays["x"][0]) == 9
    last.close()


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    ["bit", *(pytest.param(d, marks=pytest.mark.slow) for d in ("truncated", "empty", "missing"))],
)
def test_no_damaged_file_is_ever_taken_for_a_state(tmp_path, damage):
    """Each file of a checkpoint in turn; what comes back is the state that was saved, or the one
    before."""
    whole, rng = tmp_path / "whole", random.Random(0)
    first = Checkpoints(whole, CheckpointSettings(keep=2))
    for step in (1, 2):
        first.save(step, arrays_of(step), {"step": step, "pool": {"text": "größer"}})
    first.close()
    names = [p.relative_to(whole) for p in sorted((whole / "2").rglob("*")) if p.is_file()]
    names += [name for name in names if "/d/" in name.as_posix()] * 3  # the arrays, at other places
    outcomes = set()
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        file = folder / name
        match damage:
            case "bit":
                if file.stat().st_size:
                    flip(file, rng)
            case "truncated":
                os.truncate(file, file.stat().st_size // 2)
            case "empty":
                os.truncate(file, 0)
            case "missing":
                file.unlink()
        again = Checkpoints(folder, CheckpointSettings(keep=2))
        saved = again.restore(abstract(arrays_of(0)))
        again.close()
        assert saved is not None
        assert_same(saved.arrays, arrays_of(saved.step))
        assert saved.host == {"step": saved.step, "pool": {"text": "größer"}}
        outcomes.add(saved.step)
        shutil.rmtree(folder)
    assert 1 in outcomes


def test_steps_are_kept_for_good(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSettings(keep=1, keep_every=3))
    for step in range(1, 8):
        checkpoints.save(step, {"x": jnp.full((3,), step)}, {"step": step})
    checkpoints.close()
    folders = {entry.name for entry in (tmp_path / "checkpoints").iterdir()}
    assert folders == {"3", "6", "7"}


def test_nothing_readable_is_an_error_that_leaves_the_files(checkpoints, tmp_path):
    checkpoints.save(1, {"x": jnp.zeros(3)}, {})
    checkpoints.wait()
    with pytest.raises(RunError, match="no checkpoint in .* can be read"):
        checkpoints.restore({"x": jnp.zeros(5), "y": jnp.zeros(2)})
    assert (tmp_path / "checkpoints" / "1").is_dir()


MESHES = ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2})


def placed_on(mesh: Mesh, tree: object) -> object:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def save_and_restore_on_eight(folder: str) -> None:
    """From one device to each mesh and from there to the next, a step each."""
    arrays = arrays_of(1)
    for step, sizes in enumerate(MESHES, start=1):
        like = placed_on(make_mesh(ParallelSettings(mesh=sizes)), arrays)
        with contextlib.closing(Checkpoints(Path(folder), CheckpointSettings(keep=9))) as opened:
            saved = opened.restore(like)
            assert saved is not None and saved.step == step
            assert_same(saved.arrays, arrays)
            found = saved.arrays["params"]["embedding"][...]
            assert len(found.sharding.device_set) == 8 and not found.is_fully_replicated
            opened.save(step + 1, saved.arrays, {})


def test_a_state_goes_from_mesh_to_mesh(checkpoints, tmp_path, on_devices):
    checkpoints.save(1, arrays_of(1), {})
    checkpoints.wait()
    on_devices(save_and_restore_on_eight, tmp_path / "checkpoints")
    last = Checkpoints(tmp_path / "checkpoints", CheckpointSettings())
    saved = last.restore(abstract(arrays_of(0)))
    assert saved is not None and saved.step == len(MESHES) + 1
    assert_same(saved.arrays, arrays_of(1))
    last.close()


def one_of_two(index: str, port: str, folder: str, damaged: str) -> None:
    """Save two steps together, or restore them when the newer one's part of process 1 is damaged.

    The parts that other processes wrote are read by themselves alone.
    """
    settings = ParallelSettings({"fsdp": 4}, f"127.0.0.1:{port}", processes=2, process=int(index))
    start(settings)
    split = NamedSharding(make_mesh(settings), PartitionSpec("fsdp"))
    wanted = {step: np.arange(2**18, dtype=np.float32) * step for step in (1, 2)}
    opened = Checkpoints(Path(folder), CheckpointSettings())
    if damaged:
        like = {"x": jax.ShapeDtypeStruct((2**18,), np.float32, sharding=split)}
        saved = opened.restore(like)
        assert saved is not None
        assert (saved.step, saved.host) == (1, {"step": 1})
        assert checksums(saved.arrays) == checksums({"x": jnp.asarray(wanted[1])})
    else:
        for step, x in wanted.items():
            part = jax.make_array_from_callback(x.shape, split, x.__getitem__)
            opened.save(step, {"x": part}, {"step": step})
    opened.close()
    jax.distributed.shutdown()


@pytest.mark.slow
def test_damage_that_one_process_sees_is_damage_for_all(tmp_path):
    folder = tmp_path / "checkpoints"
    for damaged in ("", "damaged"):
        port = free_port()
        own = [call(one_of_two, index, port, folder, damaged) for index in range(2)]
        run_together(own, tmp_path, devices=2)
        for file in folder.glob("2/arrays/ocdbt.process_1/d/*"):
            os.truncate(file, file.stat().st_size // 2)
    assert (folder / "2.damaged").is_dir()
