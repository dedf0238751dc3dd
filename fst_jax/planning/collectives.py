"""Which mesh axes a collective of a compiled program runs over, and what it moves.

Bytes are those that one chip sends when the collective runs as a ring over its n participants, the
least that any algorithm sends (Chan et al. 2007, Collective communication: theory, practice, and
experience, sec. 4):

    all-gather         (n - 1) · own part           reduce-scatter   (n - 1) / n · input
    all-reduce     2 · (n - 1) / n · input          all-to-all       (n - 1) / n · input
    collective-permute     the input of each chip that sends
"""

import re
from collections.abc import Mapping

import numpy as np

from fst_jax.planning.hlo import Instruction

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:,? ?device_ids=\(?(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)\)?)?,? ?\{([^}]*)\}"
)
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def kind_of(opcode: str) -> str | None:
    """The collective that an opcode begins, be it synchronous or not; None for any other."""
    kind = opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def bytes_sent(kind: str, given: float, group: int) -> float:
    """Bytes that one chip sends; `given` is its input, `group` the number of participants."""
    match kind:
        case "all-gather":
            return (group - 1) * given
        case "all-reduce":
            return 2 * (group - 1) / group * given
        case "collective-permute":
            return given
    return (group - 1) / group * given


def participants(
    instruction: Instruction, mesh: Mapping[str, int]
) -> tuple[tuple[str, ...], int, float]:
    """(mesh axes along which data moves, participants of a group, share of chips that take part).

    Chips are numbered as in the flattened mesh, which is how jit assigns them.
    """
    chips = int(np.prod(list(mesh.values())))
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.attributes):
        moved = [tuple(map(int, pair)) for pair in re.findall(r"\{?(\d+),(\d+)", pairs[1])]
        moved = [pair for pair in moved if pair[0] != pair[1]]
        return _axes(moved, mesh), 2 if moved else 1, len(moved) / chips
    groups = _groups(instruction.attributes, chips)
    return _axes(groups, mesh), len(groups[0]), 1.0


def _axes(groups: list[tuple[int, ...]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    places = [np.array(np.unravel_index(group, tuple(mesh.values()))) for group in groups]
    varies = [any(len(set(place[i].tolist())) > 1 for place in places) for i in range(len(mesh))]
    return tuple(axis for axis, moves in zip(mesh, varies, strict=True) if moves)


def _groups(attributes: str, chips: int) -> list[tuple[int, ...]]:
    """The groups of `replica_groups=…`, in any of XLA's three ways of writing them."""
    if of_mesh := _MESH.search(attributes):
        return _mesh_groups(*of_mesh.groups())
    text = attributes.partition("replica_groups=")[2]
    if text.startswith("["):
        found = _IOTA.match(text)
        assert found is not None
        shape = [int(size) for size in found[1].split(",")]
        return [tuple(group) for group in _iota(found).reshape(-1, shape[-1]).tolist()]
    listed = re.match(r"\{\{([\d,{}]*)\}\}", text)
    if listed is None:  # none given: all
        return [tuple(range(chips))]
    return [tuple(map(int, group.split(","))) for group in listed[1].split("},{")]


def _mesh_groups(sizes: str, order: str | None, axes: str) -> list[tuple[int, ...]]:
    """Groups along named axes `'a'`, or parts of them `'a':(outer)size`, of XLA's own mesh."""
    mesh = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    count = int(np.prod(list(mesh.values())))
    found = _IOTA.match(order) if order else None
    ids = _iota(found).ravel() if found else np.arange(count)
    chosen = {name: (outer, size) for name, outer, size in _AXIS.findall(axes)}
    dims: list[int] = []
    inside: list[int] = []
    for name, size in mesh.items():
        outer, part = chosen.get(name, ("", ""))
        if name not in chosen:
            dims.append(size)
        elif not outer:
            inside.append(len(dims))
            dims.append(size)
        else:
            inside.append(len(dims) + 1)
            dims += [int(outer), int(part), size // (int(outer) * int(part))]
    outside = [i for i in range(len(dims)) if i not in inside]
    members = int(np.prod([dims[i] for i in inside]))
    grouped = ids.reshape(dims).transpose(*outside, *inside).reshape(-1, members)
    return [tuple(group) for group in grouped.tolist()]


def _iota(found: re.Match[str]) -> np.ndarray:
    """`[…]<=[dims]T(order)`, flat."""
    dims = [int(size) for size in found[2].split(",")]
    ids = np.arange(int(np.prod(dims))).reshape(dims)
    return (ids.transpose([int(i) for i in found[3].split(",")]) if found[3] else ids).ravel()
