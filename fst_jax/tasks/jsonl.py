"""Problems from JSONL files: one object a line, and the name of a scorer.

Files are checked once, line by line, when the task is loaded; afterwards only the
place of each line is kept, so that a file may be larger than memory.
"""

from collections.abc import Sequence
from pathlib import Path

from fst_jax.errors import TaskError
from fst_jax.tasks.rows import Rows, as_text, column, json_lines
from fst_jax.tasks.scorers import scorer_named
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
        self._scorer = scorer_named(scorer, "task jsonl")
        self._question, self._answer = question_field, answer_field
        self._id, self._system = id_field, system_field
        seen: dict[str, str] = {}
        self._problems: dict[Split, Sequence[Problem]] = {
            "train": self._checked("train", Path(train_path), seen),
            "test": self._checked("test", Path(test_path), seen),
        }

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

    def _checked(self, split: Split, path: Path, seen: dict[str, str]) -> Sequence[Problem]:
        """The problems of `path`, after a look at every line; `seen` holds where each id stands."""
        try:
            rows = json_lines(path)
        except TaskError as error:
            raise TaskError(f"task jsonl: task.options.{split}_path: {error}") from error
        if not rows.size:
            raise TaskError(f"task jsonl: {path} is empty: it needs one JSON object a line")
        for i in range(rows.size):
            try:
                problem = self._parse(split, rows, i)
            except TaskError as error:
                raise TaskError(f"task jsonl: {error}") from error
            if self._id is not None:
                place = rows.where(i)
                first = seen.setdefault(problem.id, place)
                if first != place:
                    raise TaskError(
                        f"task jsonl: {place}: id {problem.id!r} is taken by {first}; ids are "
                        "unique"
                    )
        return LazyProblems(rows.size, lambda i: self._parse(split, rows, i))

    def _parse(self, split: Split, rows: Rows, i: int) -> Problem:
        record, where = rows.read(i), rows.where(i)
        for field in (self._id, self._system):
            if field is not None:
                column(record, field, where)
        question = column(record, self._question, where)
        if not isinstance(question, str) or not question.strip():
            raise TaskError(f"{where}: {self._question!r} must be a text that is not empty")
        line = where.rpartition(":")[2]
        return Problem(
            id=f"{split}-{line}" if self._id is None else as_text(record[self._id]),
            question=question,
            answer=as_text(column(record, self._answer, where)),
            data=record,
        )
