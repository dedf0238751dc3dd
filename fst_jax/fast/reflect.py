"""The seam between evolution and whoever proposes an edit: the reflector.

A reflector sees a parent prompt with a minibatch of its rollouts and returns
one *incremental* edit, as in the paper; free rewrites gave no gain there and are
`fast.recipe: full`.  With a partner it merges the two prompts.  All jobs of a
batch come in one call, so that a model behind a network can answer them side by
side.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fst_jax.config import Config
from fst_jax.errors import ReflectionError
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem


@dataclass(frozen=True)
class Job:
    """What one proposal learns from."""

    parent: str
    rollouts: Sequence[Rollout]  # under the parent
    partner: str | None = None  # a prompt to merge the parent with; None: edit the parent
    partner_rollouts: Sequence[Rollout] = ()  # of the same problems


@dataclass(frozen=True)
class Proposal:
    """A reflector's answer to one job: a text, or why there is none, and what it cost."""

    text: str = ""
    refusal: str | None = None  # counted as it stands, e.g. "truncated"
    error: ReflectionError | None = None  # why the reflector gave no answer
    mendable: bool = False  # … which the user alone can help: raised if it is so for all jobs
    calls: int = 0  # requests to a model, retries included
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reflector(Protocol):
    """Who proposes an edit of a prompt: `rules`, `lm`, or one of your own."""

    name: str

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> list[Proposal]:
        """One proposal for each job, in order; all randomness comes from `rng`.

        A job without an answer is a `Proposal` with a refusal and an error, and the run goes
        on; an exception ends it.
        """
        ...


def reflector_for(
    config: Config,
    count_tokens: Callable[[str], int],
    shown: Callable[[Problem], str],
    replies: Path | None = None,
) -> Reflector:
    """The reflector that `fast.reflector` names.

    `shown` is a problem as the policy is asked it; `replies` is where a model's are kept.
    """
    if config.fast.reflector == "rules":
        from fst_jax.fast.rules import RulesReflector

        return RulesReflector(count_tokens, config.fast.max_prompt_tokens, config.fast.recipe)
    from fst_jax.fast.language_model import LanguageModelReflector

    return LanguageModelReflector(config, count_tokens, shown, replies)
