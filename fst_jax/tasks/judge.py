"""Answers in, scores out: what a task raises becomes one clear error, and rewards are checked."""

import os
from collections.abc import Sequence
from functools import partial

from fst_jax.errors import TaskError
from fst_jax.tasks.task import Problem, Score, Task
from fst_jax.threads import side_by_side

# Answers judged at a time: a scorer that runs in worker processes gets one of each thread.
_AT_ONCE = min(8, os.cpu_count() or 1)


def judge(task: Task, problem: Problem, text: str) -> Score:
    """The task's score of a text.

    Raises:
      TaskError: the task raised, or gave a reward outside [0, 1].
    """
    try:
        score = task.score(problem, text)
    except Exception as error:
        raise raised(task, "score", problem, error) from error
    if not 0.0 <= score.reward <= 1.0:
        raise TaskError(
            f"task {task.name} gave reward {score.reward} for problem {problem.id!r}: "
            "rewards must be in [0, 1]"
        )
    return score


def judge_all(task: Task, answers: Sequence[tuple[Problem, str]]) -> list[Score]:
    """The scores of (problem, text) pairs, in their order; several are judged at a time.

    Raises:
      TaskError: as `judge`.
    """
    return side_by_side([partial(judge, task, *answer) for answer in answers], _AT_ONCE)


def raised(task: Task, method: str, problem: Problem, error: Exception) -> TaskError:
    """The error that says what a task's method raised."""
    return TaskError(
        f"task {task.name} raised in {method}() for problem {problem.id!r}: "
        f"{type(error).__name__}: {error}"
    )
