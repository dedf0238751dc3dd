"""A stream of tasks in one run: the paper's continual setting.

Each stage is a task of its own for so many steps; the last one goes on.  θ is
carried from stage to stage, and so are the optimiser and Φ, unless the stream
resets them where a stage begins (the paper does not say; a reset is the control
for what they carry).  The seed prompt must suit every task and says nothing
about any.  Evaluations look at every stage's held-out problems each time, so
that what is forgotten shows.  The paper switches every 200 steps; any lengths
will do here, since a new stage also starts a new cycle of the fast weights.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.tasks.registry import load_task
from fst_jax.tasks.splits import LazyProblems
from fst_jax.tasks.task import Message, Problem, Score, Split, Task
from fst_jax.tasks.worker import MEMORY_GB

_KEYS = ("name", "entry_point", "options", "steps", "label")


@dataclass(frozen=True)
class Stage:
    """A stretch of a run that draws its problems from one task."""

    label: str  # `task` of its evaluations
    steps: int
    train: Sequence[Problem]
    test: Sequence[Problem]


def stages_of(task: Task) -> tuple[Stage, ...]:
    """The stages of a stream; any other task is a single stage."""
    if isinstance(task, Stream):
        return task.stages
    return (Stage(task.name, 0, task.problems("train"), task.problems("test")),)


class Stream:
    """Tasks one after the other; see the module's first paragraph."""

    name = "stream"

    def __init__(
        self,
        stages: list[dict[str, Any]],
        seed_prompt: str = "Answer the question.",
        reset_pool: bool = False,
        reset_optimizer: bool = False,
        timeout_s: float = 10.0,
        memory_gb: float = MEMORY_GB,
    ):
        """Each stage is {name or entry_point, options, steps, label}.

        `label` tells apart two stages of one task (default: the task's name).  `reset_pool` goes
        back to the seed prompt where a stage begins; `reset_optimizer` forgets the optimiser's
        moments and warms up anew.

        Raises:
          TaskError: a stage is not of this form, or its task refuses its options.
        """
        self.seed_prompt = seed_prompt
        self.reset_pool, self.reset_optimizer = reset_pool, reset_optimizer
        if not stages:
            raise TaskError("task.options.stages: a stream needs at least one stage")
        self._tasks: dict[str, Task] = {}
        found = []
        for i, given in enumerate(stages):
            try:
                label, task, steps = _stage(given, timeout_s, memory_gb)
                if label in self._tasks:
                    raise TaskError(f"two stages are called {label!r}: give one another label")
            except TaskError as error:
                raise TaskError(f"task.options.stages[{i}]: {error}") from error
            self._tasks[label] = task
            found.append(Stage(label, steps, *(_labelled(label, task, split) for split in _SPLITS)))
        self.stages = tuple(found)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of all stages, one after the other; ids begin with the stage's label."""
        parts = [getattr(stage, split) for stage in self.stages]
        ends = list(accumulate(len(part) for part in parts))

        def at(i: int) -> Problem:
            part = bisect_right(ends, i)
            return parts[part][i - ends[part] + len(parts[part])]

        return LazyProblems(ends[-1], at)

    def render(self, problem: Problem) -> list[Message]:
        """As the problem's own task asks it."""
        return self._task_of(problem).render(problem)

    def score(self, problem: Problem, text: str) -> Score:
        """As the problem's own task judges it."""
        return self._task_of(problem).score(problem, text)

    def _task_of(self, problem: Problem) -> Task:
        return self._tasks[problem.id.partition("/")[0]]


_SPLITS: tuple[Split, Split] = ("train", "test")


def _stage(given: Any, timeout_s: float, memory_gb: float) -> tuple[str, Task, int]:
    """(label, task, steps) of one entry of `stages`."""
    if not isinstance(given, dict) or not given.keys() <= set(_KEYS):
        raise TaskError(f"must be a mapping of {', '.join(_KEYS)}, not {given!r}")
    steps = given.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise TaskError(f"steps must be a number of at least 1, not {steps!r}")
    names = [given[key] for key in ("name", "entry_point") if given.get(key) is not None]
    if len(names) != 1 or not isinstance(names[0], str) or names[0] == Stream.name:
        raise TaskError("give either the name of a task, stream excepted, or an entry_point")
    options = given.get("options") or {}
    if not isinstance(options, dict):
        raise TaskError(f"options must be a mapping, not {options!r}")
    task = load_task(
        TaskSettings(
            name=given.get("name") or "",
            entry_point=given.get("entry_point"),
            options=options,
            timeout_s=timeout_s,
            memory_gb=memory_gb,
        )
    )
    label = given.get("label", task.name)
    if not isinstance(label, str) or not label or "/" in label:
        raise TaskError(f"label must be text without '/', not {label!r}")
    return label, task, steps


def _labelled(label: str, task: Task, split: Split) -> Sequence[Problem]:
    """The task's problems, their ids made unique within the stream."""
    problems = task.problems(split)

    def at(i: int) -> Problem:
        return replace(problems[i], id=f"{label}/{problems[i].id}")

    return LazyProblems(len(problems), at)
