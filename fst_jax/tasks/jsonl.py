"""Problems from JSONL files: one object a line, and the name of a scorer.

Files are checked once, line by line, when the task is loaded; afterwards only the
place of each line is kept, so that a file may be larger than memory.
"""

import difflib
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fst_jax.errors import TaskError
from fst_jax.tasks.scorers import SCORERS
from fst_jax.tasks.splits import LazyProblems
from fst_jax.tasks.task import Message, Problem, Score, Split


class Jsonl:
    """Problems from two JSONL files, judged by a named scorer (`fst_jax.tasks.scorers`)."""

    name = "jsonl"
    seed_prompt = "Answer the question."

    def __init__(
        self,
        train_path: str,
        test_path: str,
        scorer: str = "exact",
        question_field: str = "question",
        answer_field: str = "answer",
        id_field: str | None = None,
        system_field: str | None = None,
    ):
        """Without `id_field` a problem is named after its split and line: `train-17`.

        `system_field` holds text for the system message, below the evolved prompt.
        """
        if scorer not in SCORERS:
            near = difflib.get_close_matches(scorer, SCORERS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TaskError(
                f"task jsonl: unknown scorer {scorer!r}: {hint}choose one of {', '.join(SCORERS)}"
            )
        self._scorer = SCORERS[scorer]
        self._question, self._answer = question_field, answer_field
        self._id, self._system = id_field, system_field
        self._seen: dict[str, str] = {}
        self._problems: dict[Split, Sequence[Problem]] = {
            "train": self._index("train", Path(train_path)),
            "test": self._index("test", Path(test_path)),
        }
        del self._seen

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, each read when it is asked for."""
        return self._problems[split]

    def render(self, problem: Problem) -> list[Message]:
        """The system text, if there is one, and the question."""
        messages = [{"role": "user", "content": problem.question}]
        if self._system is not None and problem.data.get(self._system):
            messages.insert(0, {"role": "system", "content": str(problem.data[self._system])})
        return messages

    def score(self, problem: Problem, text: str) -> Score:
        """1 or 0, by the scorer."""
        return self._scorer.score(problem, text)

    def _index(self, split: Split, path: Path) -> Sequence[Problem]:
        """Check every line of `path` and keep where it starts."""
        offsets, numbers = array("Q"), array("Q")
        try:
            for number, offset, line in _lines(path):
                problem = self._parse(split, path, number, line)
                if self._id is not None:
                    self._claim(problem.id, f"{path}:{number}")
                offsets.append(offset)
                numbers.append(number)
        except OSError as error:
            raise TaskError(
                f"task jsonl: cannot read task.options.{split}_path = {path}: {error.strerror}"
            ) from error
        if not offsets:
            raise TaskError(f"task jsonl: {path} is empty: it needs one JSON object a line")

        def read(i: int) -> Problem:
            with path.open("rb") as file:
                file.seek(offsets[i])
                return self._parse(split, path, numbers[i], file.readline())

        return LazyProblems(len(offsets), read)

    def _claim(self, id: str, place: str) -> None:
        first = self._seen.setdefault(id, place)
        if first != place:
            raise TaskError(f"task jsonl: {place}: id {id!r} is taken by {first}; ids are unique")

    def _parse(self, split: Split, path: Path, number: int, line: bytes) -> Problem:
        where = f"task jsonl: {path}:{number}"
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{where}: not a JSON object: {error}") from error
        if not isinstance(record, dict):
            raise TaskError(f"{where}: a line must be a JSON object, not {type(record).__name__}")
        fields = [self._question, self._answer, self._id, self._system]
        for field in fields:
            if field is not None and field not in record:
                near = difflib.get_close_matches(field, record, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TaskError(f"{where}: no field {field!r}: {hint}it has {', '.join(record)}")
        question = record[self._question]
        if not isinstance(question, str) or not question.strip():
            raise TaskError(f"{where}: {self._question!r} must be a text that is not empty")
        return Problem(
            id=f"{split}-{number}" if self._id is None else _text(record[self._id]),
            question=question,
            answer=_text(record[self._answer]),
            data=record,
        )


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, offset, line) for the lines that are not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset, line
            offset += len(line)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
