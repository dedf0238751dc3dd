"""Rows of caches that are split over devices: taken by index, and put.

To index a split dimension by numbers that only the device knows, XLA gathers the whole array on
every device: caches of 150 GiB on each of 64 chips.  Here rows travel one at a time, and those that
stay on their device do not travel.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from fst_jax.parallel.sharding import SEQUENCES, shards, spec


def take_rows(x: Array, sources: Array, path: str, axis: int, mesh: Mesh) -> Array:
    """x[sources] along `axis`, the rows, split as the table says for `path`.

    The result is split alike where its rows divide by the devices, else whole on each of them.
    """
    placed = spec(path, x.shape, mesh)
    if not _is_split(placed, axis, mesh):
        return jnp.take(x, sources, axis=axis)
    parts, count = shards(mesh, SEQUENCES), sources.shape[0]
    target = placed if count % parts == 0 else _whole(placed, axis)

    def local(x: Array, sources: Array) -> Array:
        shape = list(x.shape)
        shape[axis] = count // parts if target is placed else count
        empty = jnp.zeros(shape, x.dtype)
        return _moved(x, empty, sources, jnp.arange(count), axis, target is placed)

    def moved() -> Array:
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(placed, PartitionSpec()),
            out_specs=target,
            check_vma=False,
        )(x, sources)

    if count != x.shape[axis]:
        return moved()
    in_place = jnp.all(sources == jnp.arange(count))
    return jax.lax.cond(in_place, lambda: x, moved)


def put_rows(x: Array, rows: Array, new: Array, path: str, axis: int, mesh: Mesh) -> Array:
    """`x` with `new` at `rows` along `axis`; both are split as the table says for `path`."""
    placed = spec(path, x.shape, mesh)
    if not _is_split(placed, axis, mesh):
        return x.at[(slice(None),) * axis + (rows,)].set(new)
    parts, count = shards(mesh, SEQUENCES), rows.shape[0]
    source = placed if count % parts == 0 else _whole(placed, axis)

    def local(x: Array, new: Array, rows: Array) -> Array:
        numbers = jnp.arange(count)
        if source is placed:
            return _moved(new, x, numbers, rows, axis, True)
        held = x.shape[axis]
        return _loop(lambda i: jax.lax.dynamic_slice_in_dim(new, i, 1, axis), x, rows, axis, held)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(placed, source, PartitionSpec()),
        out_specs=placed,
        check_vma=False,
    )(x, new, rows)


def _is_split(placed: PartitionSpec, axis: int, mesh: Mesh) -> bool:
    return placed[axis] is not None and shards(mesh, SEQUENCES) > 1


def _whole(placed: PartitionSpec, axis: int) -> PartitionSpec:
    return PartitionSpec(*(None if i == axis else names for i, names in enumerate(placed)))


def _moved(x: Array, onto: Array, sources: Array, targets: Array, axis: int, split: bool) -> Array:
    """On each device: row `sources[i]` of all devices' `x` at `targets[i]` of all `onto`.

    Without `split`, `onto` is whole on every device.
    """
    me, held = jax.lax.axis_index(SEQUENCES), x.shape[axis]

    def fetch(i: Array) -> Array:
        row = jax.lax.dynamic_slice_in_dim(x, sources[i] % held, 1, axis)
        owner = sources[i] // held

        def sent(row: Array) -> Array:
            return jax.lax.psum(jnp.where(owner == me, row, 0), SEQUENCES)

        if not split:
            return sent(row)
        stays = owner == targets[i] // onto.shape[axis]
        return jax.lax.cond(stays, lambda row: row, sent, row)

    return _loop(fetch, onto, targets, axis, onto.shape[axis] if split else None)


def _loop(
    fetch: Callable[[Array], Array], onto: Array, targets: Array, axis: int, held: int | None
) -> Array:
    """`onto` with `fetch(i)` at `targets[i]`, on the device that holds that row (or on all)."""
    me = jax.lax.axis_index(SEQUENCES)

    def turn(i: Any, onto: Array) -> Array:
        place = targets[i] if held is None else targets[i] % held
        row = fetch(i)
        if held is not None:
            old = jax.lax.dynamic_slice_in_dim(onto, place, 1, axis)
            row = jnp.where(targets[i] // held == me, row, old)
        return jax.lax.dynamic_update_slice_in_dim(onto, row, place, axis)

    return jax.lax.fori_loop(0, targets.shape[0], turn, onto)
