"""Star graph, code output and two-hop look-up, small enough for a model of 0.6 M parameters.

The questions and what makes a strategy good are in `fst_jax/small_world/questions.py`.  A
reward of 1 needs the right answer in the format that the task demands, as the last thing said.
Training and test problems do not overlap; `hard` asks larger questions.

The first line of feedback is advice.  With `feedback="full"` it is an instruction sentence
against what went wrong; `vague` draws it from every instruction there is, and `random` from
remarks that ask for nothing too: controls for how much of a gain is the advice.
"""

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fst_jax.errors import TaskError
from fst_jax.small_world import instructions, questions
from fst_jax.small_world.answers import read
from fst_jax.small_world.questions import KINDS
from fst_jax.tasks.splits import Splits
from fst_jax.tasks.task import Message, Problem, Score, Split

Feedback = Literal["full", "vague", "random"]

_INSTRUCTIONS = tuple(
    sentence
    for kind in (*instructions.STRATEGIES, *instructions.FORMATS)
    for sentence in instructions.wordings(kind)
)
_SENTENCES = (*_INSTRUCTIONS, *instructions.wordings("remark"))


class TinyTask:
    """One kind of question as a task."""

    kind: str
    seed_prompt = "Solve the problem."

    def __init__(
        self,
        hard: bool = False,
        answer_format: str | None = None,
        feedback: Feedback = "full",
        train_size: int = 10_000,
        test_size: int = 64,
        seed: int = 0,
    ):
        """`answer_format` is plain, square, round or curly; None takes the kind's own."""
        self.name = f"tiny_{self.kind}"
        self._kind = KINDS[self.kind]
        self._format = answer_format or self._kind.format
        if self._format not in instructions.FORMATS:
            raise TaskError(
                f"task {self.name}: answer_format must be one of "
                f"{', '.join(instructions.FORMATS)}, not {answer_format!r}"
            )
        if seed < 0:
            raise TaskError(f"task {self.name}: seed must be at least 0, not {seed}")
        self._shape = self._kind.hard if hard else self._kind.usual
        self._feedback, self._seed = feedback, seed
        self._splits = Splits(self.name, self._draw, _same, train_size, test_size)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, each made on demand."""
        return self._splits.problems(split)

    def render(self, problem: Problem) -> list[Message]:
        """One user message with the question."""
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        """1 for the right answer in the demanded format, else 0 and the first thing wrong."""
        answer = read(text)
        if answer.format is None:
            category, detail = "no answer", "The completion does not end with an answer."
        elif answer.format != self._format:
            category = "wrong format"
            wanted = questions.wrap(answer.content, self._format)
            detail = f"The answer should have been written as {wanted}."
        elif answer.content == problem.answer:
            category, detail = "correct", "The answer is right."
        else:
            stepped = self._kind.takes_steps(answer.steps)
            category = "wrong steps" if stepped else "no steps"
            detail = f"The answer is {answer.content}, expected {problem.answer}."
        return Score(
            float(category == "correct"),
            f"{self._advice(category, problem, text)}\n{detail}",
            category,
        )

    def _advice(self, category: str, problem: Problem, text: str) -> str:
        """A sentence that depends on problem and answer alone."""
        if self._feedback == "vague":
            choices: Sequence[str] = _INSTRUCTIONS
        elif self._feedback == "random":
            choices = _SENTENCES
        elif category in ("no answer", "wrong format"):
            choices = instructions.wordings(self._format)
        elif category == "no steps":
            choices = instructions.wordings(self._kind.good)
        else:
            choices = instructions.wordings("remark")
        return choices[
            zlib.crc32(f"{problem.id} {text}".encode(errors="surrogatepass")) % len(choices)
        ]

    def _draw(self, position: int) -> Problem:
        rng = np.random.default_rng([self._seed, zlib.crc32(self.kind.encode()), position])
        question = self._kind.draw(rng, self._shape)
        return Problem(id=str(position), question=question.text, answer=question.answer)


class TinyStarGraph(TinyTask):
    """Find the path from the centre of a star to the end of one arm; better from the goal back."""

    kind = "star_graph"


class TinyCodeOutput(TinyTask):
    """Say what list a few lines of code make; better line by line."""

    kind = "code_output"


class TinyTwoHop(TinyTask):
    """Say where a person's thing is; better with the thing first."""

    kind = "two_hop"


def _same(problem: Problem) -> tuple[str, ...]:
    """Two problems are one when they differ in the order of the facts alone."""
    return (problem.answer, *sorted(problem.question.split()))
