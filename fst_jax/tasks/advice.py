"""The first line of feedback: advice that can stand in a system prompt.

Each category of outcome has a few wordings.  Which one a problem gets depends
on its id alone, so that a minibatch shows several and evolution can choose.
"""

import zlib
from collections.abc import Mapping, Sequence

from fst_jax.tasks.task import Problem, Score

Advice = Mapping[str, Sequence[str]]


def judged(problem: Problem, reward: float, category: str, advice: Advice, detail: str) -> Score:
    """A score whose feedback is a line of advice for `category`, then `detail`."""
    wordings = advice[category]
    line = wordings[zlib.crc32(problem.id.encode()) % len(wordings)]
    return Score(reward, f"{line}\n{detail}", category)
