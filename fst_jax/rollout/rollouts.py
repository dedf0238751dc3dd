"""From (problem, prompt) pairs to scored rollouts.

Both learners use this one path: the fast weights for anchors and minibatches,
the slow weights for groups, evaluation for held-out problems.  All pairs of a
call go to the engine as one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fst_jax.errors import ConfigError, TaskError
from fst_jax.rollout.chat import Chat
from fst_jax.rollout.engine import Completion, Engine, Request
from fst_jax.tasks.task import Problem, Score, Task


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


def roll_out(
    engine: Engine,
    chat: Chat,
    task: Task,
    pairs: Sequence[tuple[Problem, str]],
    n: int,
    sampling: Sampling,
    rng: np.random.Generator,
    max_prompt_tokens: int,
) -> list[list[Rollout]]:
    """Sample `n` completions for each (problem, prompt) pair and score them.

    Raises:
      ConfigError: a context is longer than `max_prompt_tokens`.
      TaskError: the task raised; the message names the task and the problem.
    """
    requests = []
    for problem, prompt in pairs:
        try:
            messages = task.render(problem)
        except Exception as error:
            raise TaskError(_raised(task, "render", problem, error)) from error
        context = chat.encode(messages, prompt)
        if len(context) > max_prompt_tokens:
            raise ConfigError(
                f"problem {problem.id!r} of task {task.name} takes {len(context)} tokens with its "
                f"system prompt, more than rollout.max_prompt_tokens = {max_prompt_tokens}: raise "
                "it, or choose shorter problems or prompts"
            )
        requests.append(
            Request(
                prompt_ids=tuple(context),
                n=n,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop_ids=chat.stop_ids,
                seed=int(rng.integers(2**31)),
            )
        )
    rollouts = []
    batch = engine.generate(requests)
    for (problem, prompt), request, completions in zip(pairs, requests, batch, strict=True):
        scored = []
        for completion in completions:
            text = chat.decode(completion.ids)
            try:
                score = task.score(problem, text)
            except Exception as error:
                raise TaskError(_raised(task, "score", problem, error)) from error
            if not 0.0 <= score.reward <= 1.0:
                raise TaskError(
                    f"task {task.name} gave reward {score.reward} for problem {problem.id!r}: "
                    "rewards must be in [0, 1]"
                )
            scored.append(Rollout(problem, prompt, request.prompt_ids, completion, text, score))
        rollouts.append(scored)
    return rollouts


def _raised(task: Task, method: str, problem: Problem, error: Exception) -> str:
    return (
        f"task {task.name} raised in {method}() for problem {problem.id!r}: "
        f"{type(error).__name__}: {error}"
    )
