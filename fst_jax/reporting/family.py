"""The family tree of a run's prompts, from its pool files: who came from whom, by which edit.

A pool file holds the prompts alive at its step; together they show when each was born, how its
mean score on the anchors moved, and what was pruned.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Piece = tuple[str, str]  # ("same" | "added" | "removed", text)


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
    roots: list[Member] = []
    placed: dict[str, Member] = {}
    for member in members.values():  # by age, so that a text found again cannot close a circle
        parent = placed.get(member.parent or "")
        placed[member.id] = member
        if parent is None:
            roots.append(member)
            member.diff = [("same", member.text)]
        else:
            parent.children.append(member)
            member.diff = difference(parent.text, member.text)
    return roots


def difference(old: str, new: str) -> list[Piece]:
    """Word by word what stayed, was removed and was added; the same and added pieces make `new`."""
    before, after = _words(old), _words(new)
    pieces: list[Piece] = []
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(before[a0:a1])))
            continue
        if a1 > a0:
            pieces.append(("removed", "".join(before[a0:a1])))
        if b1 > b0:
            pieces.append(("added", "".join(after[b0:b1])))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
