"""Bytes between chips of a compiled program whose collectives are known."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fst_jax.config import ParallelSettings
from fst_jax.parallel.mesh import make_mesh
from fst_jax.planning.cost import cost_of
from fst_jax.planning.hlo import parse

STEPS = 5


def sends_what_is_known() -> None:
    mesh = make_mesh(ParallelSettings(mesh={"data": 2, "fsdp": 4}))
    part, whole = 3 * 16 * 4, 12 * 16 * 4  # bytes of a chip's rows, and of those of all four

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec(("data", "fsdp")),
        out_specs=PartitionSpec(("data", "fsdp")),
        check_vma=False,
    )
    def step(x: jax.Array) -> jax.Array:
        def turn(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            gathered = jax.lax.all_gather(jnp.sin(x), "fsdp", axis=0, tiled=True)
            scattered = jax.lax.psum_scatter(jnp.cos(gathered), "fsdp", tiled=True)
            summed = jax.lax.psum(jnp.tanh(scattered), "data")
            passed = jax.lax.ppermute(summed, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
            return jax.lax.all_to_all(jnp.sin(passed), "fsdp", 1, 1, tiled=True), None

        x, _ = jax.lax.scan(turn, x, None, length=STEPS)
        return jax.lax.pmax(x, ("data", "fsdp"))

    program = jax.jit(step).lower(jnp.ones((24, 16))).compile()
    sent = cost_of(parse(program.as_text()), mesh.shape).sent
    assert sent == {
        ("fsdp",): STEPS * (3 * part + 3 / 4 * whole + part + 3 / 4 * part),
        ("data",): STEPS * 2 * (1 / 2) * part,
        ("data", "fsdp"): 2 * (7 / 8) * part,
    }, sent


def test_bytes_by_axis(on_devices):
    on_devices(sends_what_is_known)
