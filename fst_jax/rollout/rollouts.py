"""From (problem, prompt) pairs to scored rollouts.

Both learners use this one path: the fast weights for anchors and minibatches,
the slow weights for groups, evaluation for held-out problems.  All pairs of a
call go to the engine as one batch.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fst_jax.parallel.distributed import agreed
from fst_jax.rollout.engine import Completion, Engine, Request
from fst_jax.rollout.exam import Exam
from fst_jax.tasks.judge import judge_all
from fst_jax.tasks.task import Problem, Score


@dataclass(frozen=True)
class Rollout:
    """One scored completion of one problem under one prompt."""

    problem: Problem
    prompt: str  # φ, the text of the system prompt
    context_ids: tuple[int, ...]
    completion: Completion
    text: str
    score: Score


@dataclass(frozen=True)
class Sampling:
    """How to sample; `top_p` < 1 is for evaluation only."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass
class Spent:
    """What rollouts have cost."""

    rollouts: int = 0
    tokens: int = 0  # generated
    rollout_s: float = 0.0
    reward_s: float = 0.0


class Actor:
    """The policy at work on a task: an engine that sits an exam."""

    def __init__(self, engine: Engine, exam: Exam):
        self.engine, self.exam = engine, exam
        self._spent = Spent()

    def roll_out(
        self,
        pairs: Sequence[tuple[Problem, str]],
        counts: Sequence[int],
        sampling: Sampling,
        rng: np.random.Generator,
    ) -> list[list[Rollout]]:
        """Sample `counts[i]` completions, 0 too, for (problem, prompt) pair i and score them.

        Raises:
          ConfigError: a context is too long.
          TaskError: the task raised, or gave a reward outside [0, 1].
        """
        start = time.monotonic()
        requests = [
            Request(
                prompt_ids=tuple(self.exam.context(problem, prompt)),
                n=count,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop_ids=self.exam.chat.stop_ids,
                seed=int(rng.integers(2**31)),
            )
            for (problem, prompt), count in zip(pairs, counts, strict=True)
        ]
        sampled = self.engine.generate(requests)
        middle = time.monotonic()
        answers = [[self.exam.chat.decode(c.ids.tolist()) for c in own] for own in sampled]
        scores = agreed(lambda: self._scores(pairs, answers))
        rollouts = [
            [Rollout(*pair, request.prompt_ids, *each) for each in zip(*own, strict=True)]
            for pair, request, *own in zip(pairs, requests, sampled, answers, scores, strict=True)
        ]
        self.count(rollout for own in rollouts for rollout in own)
        self._spent.rollout_s += middle - start
        self._spent.reward_s += time.monotonic() - middle
        return rollouts

    def count(self, rollouts: Iterable[Rollout]) -> None:
        """Put rollouts on the bill: those of `roll_out`, or of a process before this one."""
        for rollout in rollouts:
            self._spent.rollouts += 1
            self._spent.tokens += len(rollout.completion.ids)

    def take_spent(self) -> Spent:
        """What was spent since the last call."""
        spent, self._spent = self._spent, Spent()
        return spent

    def _scores(
        self, pairs: Sequence[tuple[Problem, str]], answers: Sequence[Sequence[str]]
    ) -> list[list[Score]]:
        flat = (
            (problem, text)
            for (problem, _), own in zip(pairs, answers, strict=True)
            for text in own
        )
        scores = iter(judge_all(self.exam.task, list(flat)))
        return [[next(scores) for _ in own] for own in answers]
