"""The stream of problems D: which problems each step sees.

The order is a permutation drawn anew for every pass over the problems from
(seed, pass) alone, so any step's minibatch can be computed without history and
a resumed run needs to know its step, nothing more.
"""

from collections.abc import Callable, Sequence

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
