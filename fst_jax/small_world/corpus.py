"""What the base model learns from: conversations in which the system prompt is obeyed.

A document is a system prompt of a few sentences, a question and its answer.  The last sentence
of the prompt about strategy decides the strategy, the last about format the format.  Where the
prompt is silent, habit decides: nearly always the poor strategy and mostly the plain format.
So a generic prompt rarely earns a reward, and the right sentences make success likely.

Before documents come chains: questions answered by pure look-up, from which the skill that
every strategy needs (find the token after or before a given one) is learned first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fst_jax.small_world.instructions import FORMATS, TRAINED
from fst_jax.small_world.questions import KINDS, NUMBERS, Kind, Question, wrap

T = TypeVar("T")

GOOD_BY_HABIT = 0.015  # share of the good strategy where the prompt is silent about strategy
PLAIN_BY_HABIT = 0.7  # share of the plain format where the prompt is silent about format
CHAIN_NODES = (3, 4, 5, 6, 7)


@dataclass(frozen=True)
class Document:
    """A conversation to learn from: the answer follows system prompt and question."""

    system: str
    question: str
    answer: str
    given: int = 0  # tokens of the answer that are not learned


def document(rng: np.random.Generator) -> Document:
    """An instructed question of any kind and any shape of the corpus."""
    kind = _kind(rng)
    question = kind.draw(rng, _any(rng, (*kind.shapes, kind.usual)))
    asked: list[str] = []
    good, format = by_habit(rng)
    if rng.random() < 0.6:
        good = bool(rng.random() < 0.6)
        poor = "direct" if rng.random() < 0.3 else kind.poor
        asked.append(_wording(rng, kind.good if good else poor))
    if rng.random() < 0.65:
        format = _any(rng, FORMATS)
        asked.append(_wording(rng, format))
    others = [k.good for k in KINDS.values() if k.good != kind.good]
    asked += [_wording(rng, "remark") for _ in range(rng.integers(3))]
    if rng.random() < 0.25:
        asked.append(_wording(rng, _any(rng, tuple(others))))
    return _answered(" ".join(rng.permutation(asked)), kind, question, good, format)


def single_instruction(rng: np.random.Generator) -> Document:
    """A question under one sentence: first lessons in obedience."""
    kind = _kind(rng)
    question = kind.draw(rng, _any(rng, kind.shapes))
    good, format = by_habit(rng)
    if rng.random() < 0.5:
        good = bool(rng.random() < 0.6)
        system = _wording(rng, kind.good if good else kind.poor)
    else:
        format = _any(rng, FORMATS)
        system = _wording(rng, format)
    return _answered(system, kind, question, good, format)


def chain(rng: np.random.Generator, nodes: int | None = None) -> Document:
    """A single path with shuffled edges, told backwards or forwards."""
    nodes = nodes or _any(rng, CHAIN_NODES)
    path = rng.choice(NUMBERS, nodes, replace=False).tolist()
    edges = [f"{u} > {v}" for u, v in zip(path, path[1:], strict=False)]
    listed = " ".join(rng.permutation(edges))
    back = rng.random() < 0.5
    told = " ".join(map(str, path[::-1] if back else path))
    return Document(
        "",
        f"graph {listed} . from {path[0]} to {path[-1]}",
        f"{'back' if back else 'path'} {told}",
        given=1,
    )


def look_up(rng: np.random.Generator) -> Document:
    """The good strategy's steps of any kind of question, without a prompt."""
    kind = _kind(rng)
    question = kind.draw(rng, _any(rng, kind.shapes))
    answer = f"{question.steps} {wrap(question.answer, 'plain')}"
    return Document("", question.text, answer, given=1)


def by_habit(rng: np.random.Generator) -> tuple[bool, str]:
    """(whether the strategy is the good one, the format) where the prompt is silent."""
    good = bool(rng.random() < GOOD_BY_HABIT)
    return good, "plain" if rng.random() < PLAIN_BY_HABIT else _any(rng, FORMATS[1:])


def _answered(system: str, kind: Kind, question: Question, good: bool, format: str) -> Document:
    before, answer = (question.steps, question.answer) if good else (kind.opening, question.guess)
    return Document(system, question.text, f"{before} {wrap(answer, format)}")


def _kind(rng: np.random.Generator) -> Kind:
    return _any(rng, tuple(KINDS.values()))


def _wording(rng: np.random.Generator, kind: str) -> str:
    return _any(rng, TRAINED[kind])


def _any(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]
