"""From the settings of a task to the task, checked so far as that is cheap."""

import difflib
import importlib
import inspect
from collections.abc import Sequence

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError, UserError
from fst_jax.tasks.entry_point import UserTask
from fst_jax.tasks.options import check_options
from fst_jax.tasks.task import Problem, Split, Task

BUILT_IN = {
    "star_graph": "fst_jax.tasks.star_graph:StarGraph",
    "reasoning_gym": "fst_jax.tasks.reasoning_gym:ReasoningGym",
    "code_io": "fst_jax.tasks.code_io:CodeIO",
    "math": "fst_jax.tasks.math:Math",
    "hover": "fst_jax.tasks.hover:Hover",
    "choice": "fst_jax.tasks.choice:Choice",
    "jsonl": "fst_jax.tasks.jsonl:Jsonl",
    "tfds": "fst_jax.tasks.tfds:Tfds",
    "tiny_star_graph": "fst_jax.tasks.tiny:TinyStarGraph",
    "tiny_code_output": "fst_jax.tasks.tiny:TinyCodeOutput",
    "tiny_two_hop": "fst_jax.tasks.tiny:TinyTwoHop",
    "stream": "fst_jax.tasks.stream:Stream",
}
_CHECKED_IDS = 10_000  # a split may be endless in effect; longer ones are checked so far


def load_task(settings: TaskSettings) -> Task:
    """The task of a run: a built-in one, or the user's own with `entry_point`.

    Raises:
      TaskError: the task is unknown, refuses its options, raises, has an empty
        split, or gives two problems the same id.
    """
    task: Task = UserTask(settings) if settings.entry_point else _built_in(settings)
    if settings.seed_prompt is not None:
        task.seed_prompt = settings.seed_prompt
    train, test = _problems(task, "train"), _problems(task, "test")
    if settings.entry_point:
        _check_ids(task, train, test)
    return task


def _built_in(settings: TaskSettings) -> Task:
    if settings.name not in BUILT_IN:
        near = difflib.get_close_matches(settings.name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TaskError(
            f"task.name: no task {settings.name!r}: {hint}choose one of {', '.join(BUILT_IN)}, "
            "or set task.entry_point to your own"
        )
    module, _, name = BUILT_IN[settings.name].partition(":")
    constructor = getattr(importlib.import_module(module), name)
    limits = {"timeout_s": settings.timeout_s, "memory_gb": settings.memory_gb}
    taken = inspect.signature(constructor).parameters  # by tasks whose scorers run apart
    reserved = {name: limit for name, limit in limits.items() if name in taken}
    check_options(constructor, settings.options, settings.name, tuple(reserved))
    return constructor(**settings.options, **reserved)


def _problems(task: Task, split: Split) -> Sequence[Problem]:
    """The problems of a split, after a look at the first."""
    try:
        problems = task.problems(split)
        size = len(problems)
        first = problems[0] if size else None
    except UserError:
        raise
    except Exception as error:
        raise TaskError(
            f"task {task.name} raised in problems({split!r}): {type(error).__name__}: {error}"
        ) from error
    if first is None:
        raise TaskError(f"task {task.name} has no {split} problems: problems({split!r}) is empty")
    if isinstance(first, Problem):
        _check_fields(task, first)
    else:
        raise TaskError(
            f"task {task.name}: problems({split!r}) must hold fst_jax.tasks.task.Problem, "
            f"not {type(first).__name__}"
        )
    return problems


def _check_fields(task: Task, problem: Problem) -> None:
    for name in ("id", "question", "answer"):
        value = getattr(problem, name)
        if not isinstance(value, str):
            raise TaskError(
                f"task {task.name}: {name} of problem {problem.id!r} must be text, not "
                f"{type(value).__name__}"
            )


def _check_ids(task: Task, *splits: Sequence[Problem]) -> None:
    seen: set[str] = set()
    try:
        for problems in splits:
            for i in range(min(len(problems), _CHECKED_IDS)):
                problem = problems[i]
                _check_fields(task, problem)
                if problem.id in seen:
                    raise TaskError(
                        f"task {task.name} gives two problems the id {problem.id!r}: ids are "
                        "unique over both splits"
                    )
                seen.add(problem.id)
    except UserError:
        raise
    except Exception as error:
        raise TaskError(
            f"task {task.name} raised while its problems were read: {type(error).__name__}: {error}"
        ) from error
