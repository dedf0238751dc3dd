"""The seam between evolution and whoever proposes an edit: the reflector.

A reflector sees a parent prompt with a minibatch of its rollouts and returns
one *incremental* edit, as in the paper; free rewrites gave no gain there.  All
jobs of a batch come in one call, so that a model behind a network can answer
them side by side.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fst_jax.config import FastSettings
from fst_jax.errors import ReflectionError
from fst_jax.rollout.rollouts import Rollout


@dataclass(frozen=True)
class Job:
    """What one proposal learns from."""

    parent: str
    rollouts: Sequence[Rollout]


@dataclass(frozen=True)
class Proposal:
    """A reflector's answer to one job: a text, or why there is none, and what it cost."""

    text: str = ""
    refusal: str | None = None  # counted as it stands, e.g. "truncated"
    error: ReflectionError | None = None  # the reflector failed; counted, and raised if all did
    calls: int = 0  # requests to a model, retries included
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reflector(Protocol):
    """Who proposes an edit of a prompt: `rules`, `lm`, or one of your own."""

    name: str

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> list[Proposal]:
        """One proposal for each job, in order; all randomness comes from `rng`.

        A job that fails is a `Proposal` with an error; an exception ends the run.
        """
        ...


def reflector_for(settings: FastSettings, count_tokens: Callable[[str], int]) -> Reflector:
    """The reflector that `fast.reflector` names."""
    if settings.reflector == "rules":
        from fst_jax.fast.rules import RulesReflector

        return RulesReflector(count_tokens, settings.max_prompt_tokens)
    from fst_jax.fast.language_model import LanguageModelReflector

    return LanguageModelReflector(settings)
