"""The seam between the method and the world: x ~ D and r(x, y).

A task holds problems, turns one into chat messages, and scores an answer with a
reward *and* words.  The words are what the fast weights learn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "test"]
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Problem:
    """One problem; `id` is unique within the task and stable between runs."""

    id: str
    question: str
    answer: str
    data: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Score:
    """How good an answer is.

    `reward` is in [0, 1].  `category` names the kind of outcome in a word or
    two ("correct", "no answer", "wrong node", …), the same for every problem.
    The first line of `feedback` is advice that holds for any problem of the
    task, in the imperative, so that it can stand in a system prompt; the lines
    after it speak of this answer.
    """

    reward: float
    feedback: str
    category: str


class Task(Protocol):
    """Problems, how to ask them, how to judge an answer.

    All methods are pure and thread-safe.  `score` never raises for a bad
    answer: a bad answer has a low reward.
    """

    name: str
    seed_prompt: str

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, indexable, in a fixed order."""
        ...

    def render(self, problem: Problem) -> list[Message]:
        """The chat messages that ask the problem, without the evolved prompt."""
        ...

    def score(self, problem: Problem, text: str) -> Score:
        """Judge the text of a completion."""
        ...
