"""The family tree of a run's prompts, from its pool files: who came from whom, by which edit.

A pool file holds the prompts alive at its step; together they show when each was born, how its
mean score on the anchors moved, and what was pruned.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Piece = tuple[str, str]  # ("same" | "added" | "removed" | "left out", text)
_ALIKE = 0.5  # of a line's words, from which it counts as edited; below, as replaced
_SHOWN = 120  # characters of what stayed that are shown on each side of a change


@dataclass
class Member:
    """One prompt with its history."""

    id: str
    text: str
    parent: str | None
    origin: str
    born: int  # step
    scores: list[tuple[int, float]] = field(default_factory=list)  # (step, mean over anchors)
    active: bool = False  # among the K in use at the end
    alive: bool = False  # in the last pool file
    diff: list[Piece] = field(default_factory=list)  # to the parent
    children: list["Member"] = field(default_factory=list)
    number: int = 0  # by age, from 1
    parent_number: int | None = None
    rank: int | None = None  # among the K in use at the end, from 0


def family(pools: Sequence[Mapping[str, Any]]) -> list[Member]:
    """The roots of the tree: the seed prompt, and prompts whose parents no pool file holds."""
    members: dict[str, Member] = {}
    for pool in pools:
        for prompt in pool["prompts"]:
            member = members.setdefault(
                prompt["id"],
                Member(
                    prompt["id"],
                    prompt["text"],
                    prompt["parent"],
                    prompt["origin"],
                    int(prompt["created_step"]),
                ),
            )
            scores = list(prompt["scores"].values())
            if scores:
                member.scores.append((int(pool["step"]), sum(scores) / len(scores)))
    if pools:
        last = pools[-1]
        for prompt in last["prompts"]:
            members[prompt["id"]].alive = True
            members[prompt["id"]].active = prompt["id"] in last["active"]
        for rank, of_active in enumerate(dict.fromkeys(last["active"])):
            members[of_active].rank = rank
    roots: list[Member] = []
    placed: dict[str, Member] = {}
    # By age, so that a text found again cannot close a circle.
    for number, member in enumerate(members.values(), start=1):
        parent = placed.get(member.parent or "")
        placed[member.id] = member
        member.number, member.parent_number = number, parent.number if parent else None
        if parent is None:
            roots.append(member)
            member.diff = [("same", member.text)]
        else:
            parent.children.append(member)
            member.diff = difference(parent.text, member.text)
    return roots


def flattened(roots: Sequence[Member]) -> list[tuple[int, Member]]:
    """Every member with its generation, 0 for roots, each below its parent."""
    found: list[tuple[int, Member]] = []
    waiting = [(0, root) for root in reversed(roots)]
    while waiting:  # no recursion: lineages may be hundreds of generations long
        depth, member = waiting.pop()
        found.append((depth, member))
        waiting += [(depth + 1, child) for child in reversed(member.children)]
    return found


def difference(old: str, new: str) -> list[Piece]:
    """What stayed, was removed and was added; the same and added pieces make `new`.

    Lines are compared first.  A line that was edited is shown word by word, one of which little
    was kept as removed and added whole.
    """
    before, after = _lines(old), _lines(new)
    pieces: list[Piece] = []
    for kind, a0, a1, b0, b1 in _changes(before, after):
        one, other = "".join(before[a0:a1]), "".join(after[b0:b1])
        pieces += [("same", one)] if kind == "equal" else _by_words(one, other)
    return _joined(pieces)


def condensed(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with the middle of long unchanged stretches left out, as ("left out", text)."""
    return list(_condensed(pieces)) if len(pieces) > 1 else list(pieces)


def _condensed(pieces: Sequence[Piece]) -> Iterator[Piece]:
    for place, (kind, text) in enumerate(pieces):
        head = _SHOWN if place > 0 else 0
        tail = _SHOWN if place < len(pieces) - 1 else 0
        if kind != "same" or len(text) <= head + tail + _SHOWN:
            yield kind, text
            continue
        if head:
            yield "same", text[:head]
        yield "left out", text[head : len(text) - tail]
        if tail:
            yield "same", text[len(text) - tail :]


def _by_words(old: str, new: str) -> list[Piece]:
    words = re.findall(r"\w+", old), re.findall(r"\w+", new)  # spaces and stops are always alike
    if difflib.SequenceMatcher(None, *words, autojunk=False).ratio() < _ALIKE:
        return [("removed", old), ("added", new)]
    pieces: list[Piece] = []
    before, after = _words(old), _words(new)
    for kind, a0, a1, b0, b1 in _changes(before, after):
        one, other = "".join(before[a0:a1]), "".join(after[b0:b1])
        pieces += [("same", one)] if kind == "equal" else [("removed", one), ("added", other)]
    return pieces


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Without empty pieces, and neighbours of a kind as one."""
    found: list[Piece] = []
    for kind, text in pieces:
        if text and found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + text)
        elif text:
            found.append((kind, text))
    return found


def _changes(before: list[str], after: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    return difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes()


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]+|\n", text)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
