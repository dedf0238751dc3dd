"""Train and test problems from rows of data sets, without overlap.

Test is a source of its own, or so many rows held out of the train source by a seeded permutation.
Every row is looked at once when the task is loaded, so that a bad one is named before a run starts;
rows that are no problem of the task are left out, and so is a train problem whose question test
has too.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fst_jax.errors import TaskError
from fst_jax.tasks.rows import Row, Rows, open_rows
from fst_jax.tasks.splits import LazyProblems
from fst_jax.tasks.task import Problem, Split

Parse = Callable[[str, Row, str], Problem | None]  # (id, row, its place for messages)


def split_rows(
    task: str, parse: Parse, train: str, test: str | None, test_size: int, seed: int
) -> dict[Split, Sequence[Problem]]:
    """The problems of both splits, each parsed when it is asked for.

    Ids are the split and the number of the row: `train-17`.

    Raises:
      TaskError: a source cannot be read, a row is bad, or a split would be empty.
    """
    try:
        rows = _open("train", train)
        asked = _questions(rows, parse)
        if test is None:
            if not 1 <= test_size < len(asked):
                raise TaskError(
                    f"task.options.test_size = {test_size} must leave both splits some of the "
                    f"{len(asked)} problems in {train}: change it, or name task.options.test"
                )
            drawn = np.random.default_rng(seed).permutation(sorted(asked))[:test_size]
            chosen, test_rows = sorted(drawn.tolist()), rows
            held_out = {asked[i] for i in chosen}
        else:
            test_rows = _open("test", test)
            of_test = _questions(test_rows, parse)
            chosen, held_out = list(of_test), set(of_test.values())
        rest = [i for i, question in asked.items() if question not in held_out]
        for split, source, found in (("train", train, rest), ("test", test, chosen)):
            if not found:
                raise TaskError(f"{source or train}: no row is a {split} problem of this task")
    except TaskError as error:
        raise TaskError(f"task {task}: {error}") from error
    return {
        "train": _problems("train", rows, rest, parse),
        "test": _problems("test", test_rows, chosen, parse),
    }


def _open(split: Split, source: str) -> Rows:
    try:
        return open_rows(source)
    except TaskError as error:
        raise TaskError(f"task.options.{split}: {error}") from error


def _questions(rows: Rows, parse: Parse) -> dict[int, int]:
    """Row number → hash of its question, for the rows that are problems."""
    parsed = ((i, parse("", rows.read(i), rows.where(i))) for i in range(rows.size))
    return {i: hash(problem.question) for i, problem in parsed if problem is not None}


def _problems(split: Split, rows: Rows, chosen: Sequence[int], parse: Parse) -> Sequence[Problem]:
    def make(i: int) -> Problem:
        row = chosen[i]
        problem = parse(f"{split}-{row}", rows.read(row), rows.where(row))
        assert problem is not None, "it was one when the task was loaded"
        return problem

    return LazyProblems(len(chosen), make)
