"""Any data set that TensorFlow Datasets has prepared, with a scorer by name.

Records are read at random from ArrayRecord files, and TensorFlow is never imported: prepare a data
set once, anywhere, with `tfds build NAME --file_format=array_record`.  Columns become the question
and the answer through templates such as `"{premise}\n\nDoes this follow? {hypothesis}"`.
"""

import string
from collections.abc import Sequence

from fst_jax.errors import TaskError
from fst_jax.tasks.rows import Row, Rows, as_text, column, prepared_rows
from fst_jax.tasks.scorers import scorer_named
from fst_jax.tasks.splits import LazyProblems
from fst_jax.tasks.task import Message, Problem, Score, Split


class Tfds:
    """Problems from a prepared data set, judged by a named scorer (`fst_jax.tasks.scorers`)."""

    name = "tfds"
    seed_prompt = "Answer the question."

    def __init__(
        self,
        builder: str,
        data_dir: str | None = None,
        train_split: str = "train",
        test_split: str = "test",
        scorer: str = "exact",
        question: str = "{question}",
        answer: str = "{answer}",
    ):
        """`builder` is a name, with `/config` and `:version` if need be, or a prepared folder.

        Splits may be slices, train[:95%]; the two must not overlap.  `question` and `answer` are
        templates in which {column} stands for a column's value.
        """
        self._scorer = scorer_named(scorer, "task tfds")
        self._templates = {"question": question, "answer": answer}
        names = {key: _columns(key, template) for key, template in self._templates.items()}
        self._problems: dict[Split, Sequence[Problem]] = {}
        splits: tuple[tuple[Split, str], ...] = (("train", train_split), ("test", test_split))
        for split, called in splits:
            try:
                rows = prepared_rows(builder, called, data_dir)
                for name in {name for found in names.values() for name in found}:
                    column(rows.read(0), name, rows.where(0))
            except TaskError as error:
                raise TaskError(f"task tfds: {error}") from error
            self._problems[split] = self._lazy(split, rows)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, each read when it is asked for."""
        return self._problems[split]

    def render(self, problem: Problem) -> list[Message]:
        """The question."""
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        """1 or 0, by the scorer."""
        return self._scorer.score(problem, text)

    def _lazy(self, split: Split, rows: Rows) -> Sequence[Problem]:
        def make(i: int) -> Problem:
            row = rows.read(i)
            filled = {key: _filled(t, row) for key, t in self._templates.items()}
            return Problem(f"{split}-{i}", filled["question"], filled["answer"])

        return LazyProblems(rows.size, make)


def _columns(key: str, template: str) -> list[str]:
    """The columns that a template names."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise TaskError(f"task tfds: task.options.{key} = {template!r}: {error}") from error
    if not names or not all(name.isidentifier() for name in names):
        raise TaskError(
            f"task tfds: task.options.{key} = {template!r}: write the name of a column in braces, "
            "as in '{question}'; a brace itself is written twice"
        )
    return names


def _filled(template: str, row: Row) -> str:
    return template.format_map({name: as_text(value) for name, value in row.items()})
