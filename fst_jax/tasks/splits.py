"""Train and test problems drawn from a generator, on demand and without overlap.

A generator makes the problem at any position of a stream.  Test takes the first
positions and is kept in memory once it is used; train takes the next ones and is
never held.  A problem that is unusable, or that test already has, is drawn again
from a spare stretch at the end.  The paper does not say whether its splits
overlap; here no test problem is ever trained on.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from operator import index as as_index
from typing import overload

from fst_jax.errors import TaskError
from fst_jax.tasks.task import Problem, Split

_REDRAWS = 100


class LazyProblems(Sequence[Problem]):
    """`size` problems, each made when it is asked for."""

    def __init__(self, size: int, make: Callable[[int], Problem]):
        self._size = size
        self._make = make

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, key: int) -> Problem: ...
    @overload
    def __getitem__(self, key: slice) -> list[Problem]: ...
    def __getitem__(self, key: int | slice) -> Problem | list[Problem]:
        if isinstance(key, slice):
            return [self._make(i) for i in range(self._size)[key]]
        return self._make(range(self._size)[as_index(key)])


class Splits:
    """Disjoint splits of the stream `draw(0), draw(1), …`."""

    def __init__(
        self,
        task: str,
        draw: Callable[[int], Problem | None],
        same: Callable[[Problem], Hashable],
        train_size: int,
        test_size: int,
    ):
        """`draw` may return None for an unusable position; equal `same` means one problem.

        Ids are given here: `train-17`, `test-3`.
        """
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            if size < 1:
                raise TaskError(f"task {task}: {name} must be at least 1, not {size}")
        self._task = task
        self._draw = draw
        self._same = same
        self.train_size = train_size
        self.test_size = test_size

    @staticmethod
    def stream_length(train_size: int, test_size: int) -> int:
        """How many positions of the stream may be drawn, the spare stretch included."""
        return train_size + test_size + _spare(test_size)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of `split`."""
        if split == "train":
            return LazyProblems(self.train_size, self._train)
        return LazyProblems(self.test_size, lambda i: self._test[i])

    def _train(self, i: int) -> Problem:
        spare, base = _spare(self.test_size), self.train_size + self.test_size
        for attempt in range(_REDRAWS):
            position = self.test_size + i
            if attempt:
                position = base + (i * _REDRAWS + attempt) % spare
            problem = self._draw(position)
            if problem is not None and self._same(problem) not in self._held_out:
                return replace(problem, id=f"train-{i}")
        raise self._too_few(f"{_REDRAWS} draws gave no train problem that is not in test")

    @cached_property
    def _test(self) -> list[Problem]:
        base = self.train_size + self.test_size
        positions = [*range(self.test_size), *range(base, base + _spare(self.test_size))]
        found: dict[Hashable, Problem] = {}
        for position in positions:
            problem = self._draw(position)
            if problem is not None and self._same(problem) not in found:
                found[self._same(problem)] = replace(problem, id=f"test-{len(found)}")
                if len(found) == self.test_size:
                    return list(found.values())
        raise self._too_few(f"only {len(found)} different test problems were found")

    @cached_property
    def _held_out(self) -> frozenset[Hashable]:
        return frozenset(self._same(problem) for problem in self._test)

    def _too_few(self, what: str) -> TaskError:
        return TaskError(
            f"task {self._task}: {what}; lower task.options.test_size = {self.test_size}, or "
            "choose options with more different problems"
        )


def _spare(test_size: int) -> int:
    return 1000 + test_size
