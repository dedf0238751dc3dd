"""Stub policies: text answers that depend on the instruction lines of the prompt."""

import random
from collections.abc import Callable, Sequence

import numpy as np

from fst_jax.rollout.engine import Completion
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.star_graph import StarGraph
from fst_jax.tasks.task import Problem, Score, Task

Answer = Callable[[Problem, str, random.Random], str]


def question(problem: Problem) -> str:
    """A problem as these policies are asked it."""
    return problem.question


def rollout(problem: Problem, prompt: str, text: str, score: Score) -> Rollout:
    """A rollout with empty token ids."""
    empty = Completion(np.zeros(0, np.int32), np.zeros(0, np.float32), "stop", 1.0, 0)
    return Rollout(problem, prompt, (), empty, text, score)


class Policy:
    """A `RollOut` that answers by a function and remembers what it was asked."""

    def __init__(self, task: Task, answer: Answer, seed: int = 0):
        self.task, self.answer = task, answer
        self.rng = random.Random(seed)
        self.batches: list[int] = []
        self.prompts: list[str] = []

    def __call__(self, pairs: Sequence[tuple[Problem, str]]) -> list[Rollout]:
        self.batches.append(len(pairs))
        self.prompts += [prompt for _, prompt in pairs]
        rollouts = []
        for problem, prompt in pairs:
            text = self.answer(problem, prompt, self.rng)
            rollouts.append(rollout(problem, prompt, text, self.task.score(problem, text)))
        return rollouts


BACKWARDS = "Work backwards from the goal"
REVERSE = "Find the path from the goal back to the source first"


def star_graph() -> StarGraph:
    """A star graph whose gold path is one of two short arms."""
    return StarGraph(degree=2, path_nodes=4, node_range=60, train_size=64, test_size=8)


def obeys_strategy(problem: Problem, prompt: str, rng: random.Random) -> str:
    """Right iff told to work backwards, else one of four mistakes."""
    if BACKWARDS in prompt or REVERSE in prompt:
        return rf"\boxed{{{problem.answer}}}"
    path = problem.answer.split(",")
    gold = set(path)
    decoy = [v for u, v in problem.data["edges"] if str(v) not in gold]
    mistakes = [
        problem.answer,  # no box
        rf"\boxed{{{path[0]},{path[-1]}}}",  # not an edge
        rf"\boxed{{{','.join(path[:-1])}}}",  # stopped early
        rf"\boxed{{{path[0]},{_first_of(problem, path[0], decoy)}}}",  # decoy arm
    ]
    return rng.choices(mistakes, weights=[2, 1, 1, 3])[0]


def _first_of(problem: Problem, source: str, decoy: list[int]) -> int:
    return next(v for u, v in problem.data["edges"] if str(u) == source and v in decoy)
