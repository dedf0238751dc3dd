"""The stream of problems D: which problems each step sees.

The order is a permutation drawn anew for every pass over the problems from
(seed, pass) alone, so any step's minibatch can be computed without history and
a resumed run needs to know its step, nothing more.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from fst_jax.errors import TaskError
from fst_jax.tasks.task import Problem


class ProblemOrder:
    """Minibatches of `per_step` problems, without end."""

    def __init__(
        self,
        problems: Sequence[Problem],
        per_step: int,
        seed: int,
        usable: Callable[[Problem], bool] = lambda problem: True,
    ):
        """In the place of a problem that is not `usable` comes the next that is."""
        self._problems, self._per_step, self._seed = problems, per_step, seed
        self._usable = usable
        self._pass, self._permutation = -1, np.empty(0, np.int64)

    def minibatch(self, step: int) -> list[Problem]:
        """B_t: the problems of step `step`, counted from 0."""
        start = step * self._per_step
        return [self._at(start + i) for i in range(self._per_step)]

    def look_ahead(self, step: int, steps: int) -> list[Problem]:
        """L_c: the distinct problems of the next `steps` minibatches, in order."""
        ahead = (problem for t in range(step, step + steps) for problem in self.minibatch(t))
        return list({problem.id: problem for problem in ahead}.values())

    def _at(self, position: int) -> Problem:
        number, index = divmod(position, len(self._problems))
        if number != self._pass:
            rng = np.random.default_rng([self._seed, number])
            self._pass, self._permutation = number, rng.permutation(len(self._problems))
        for offset in range(len(self._problems)):
            at = self._permutation[(index + offset) % len(self._problems)]
            problem = self._problems[int(at)]
            if self._usable(problem):
                return problem
        raise TaskError("no problem of the task fits into rollout.max_prompt_tokens: raise it")


class StagedOrder:
    """`ProblemOrder`s that take turns: each for its number of steps, the last without end.

    A cycle of the fast weights never crosses into the next stage: it would be
    anchored on problems that it does not train on.
    """

    def __init__(self, orders: Sequence[ProblemOrder], steps: Sequence[int], labels: Sequence[str]):
        """`steps` holds the length of each stage; that of the last does not matter."""
        self._orders, self._labels = orders, labels
        self._starts = [0, *accumulate(steps[:-1])]

    def minibatch(self, step: int) -> list[Problem]:
        """B_t: the problems of step `step`, counted from 0."""
        stage, within = self._at(step)
        return self._orders[stage].minibatch(within)

    def label(self, step: int) -> str:
        """What the stage of step `step` is called."""
        return self._labels[self._at(step)[0]]

    def begins_stage(self, step: int) -> bool:
        """Whether the problems come from another task than at the step before."""
        stage, within = self._at(step)
        return stage > 0 and within == 0

    def begins_cycle(self, step: int, cycle_steps: int) -> bool:
        """Whether a fast round comes before step `step`: every T steps of a stage."""
        return self._at(step)[1] % cycle_steps == 0

    def look_ahead(self, step: int, steps: int) -> list[Problem]:
        """L_c: the distinct problems of the next `steps` minibatches, as far as the stage goes."""
        stage, within = self._at(step)
        if stage + 1 < len(self._starts):
            steps = min(steps, self._starts[stage + 1] - step)
        return self._orders[stage].look_ahead(within, steps)

    def _at(self, step: int) -> tuple[int, int]:
        """The stage that a step falls in, and the step counted from the stage's start."""
        stage = bisect_right(self._starts, step) - 1
        return stage, step - self._starts[stage]
