"""Rollouts of a step to advantages: all G rollouts of a problem are one group.

The prompts are mixed within a group, so that a rollout is also compared with
those under other prompts (Algorithm 1 of the paper); `baseline: prompt` is its
ablation, where each prompt's rollouts are compared among themselves.  With
`baseline: batch` all rollouts of a step are one group.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from fst_jax.config import SlowSettings
from fst_jax.rollout.engine import Completion
from fst_jax.rollout.rollouts import Rollout
from fst_jax.slow.advantages import group_advantages
from fst_jax.slow.objectives import recipe
from fst_jax.slow.packing import Sample
from fst_jax.tasks.task import Problem


def samples_of(
    groups: Sequence[Sequence[Rollout]],
    settings: SlowSettings,
    penalties: Float[np.ndarray, "N"] | None = None,
    reference: Sequence[tuple[int, ...]] = (),
) -> list[Sample]:
    """Label every rollout with its advantage; `groups[p]` holds problem p's G rollouts.

    `penalties`, one a rollout, are taken off the rewards first (see `penalty.py`).  `reference`
    holds the token ids of each problem as the reference reads it, where that is not as θ does.
    """
    flat = [(p, rollout) for p, group in enumerate(groups) for rollout in group]
    own = recipe(settings)
    keys = {
        "problem": [(p, "") for p, _ in flat],
        "prompt": [(p, rollout.prompt) for p, rollout in flat],
        "batch": [(0, "")] * len(flat),
    }[own.baseline]
    ids: dict[tuple[int, str], int] = {}
    rewards = np.array([rollout.score.reward for _, rollout in flat], np.float64)
    advantages, valid = group_advantages(
        rewards if penalties is None else rewards - penalties,
        np.array([ids.setdefault(key, len(ids)) for key in keys]),
        own.normalize_std,
        settings.normalize_batch,
        own.leave_one_out,
    )
    return [
        replace(
            unlabelled(rollout.context_ids, rollout.completion),
            group=p,
            advantage=float(advantage),
            valid=bool(has_variance),
            frozen_ids=reference[p] if reference else (),
        )
        for (p, rollout), advantage, has_variance in zip(flat, advantages, valid, strict=True)
    ]


def followers(
    groups: Sequence[Sequence[Rollout]],
    prompts: Sequence[str],
    context: Callable[[Problem, str], Sequence[int]],
) -> list[Sample]:
    """A student's rollouts, G of each problem, with the teacher's context under one of K prompts.

    Each prompt is that of G/K rollouts, one after another.  `context` gives a problem's token ids
    under a prompt.
    """
    samples = []
    for p, group in enumerate(groups):
        read = [tuple(context(group[0].problem, prompt)) for prompt in prompts]
        for i, rollout in enumerate(group):
            own = unlabelled(rollout.context_ids, rollout.completion)
            frozen_ids = read[i * len(prompts) // len(group)]
            samples.append(replace(own, group=p, valid=True, frozen_ids=frozen_ids))
    return samples


def unlabelled(context_ids: tuple[int, ...], completion: Completion) -> Sample:
    """A completion that is measured, not learned from."""
    return Sample(
        context_ids, completion.ids, completion.logprobs, completion.temperature, 0, 0.0, False
    )


def group_metrics(groups: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
    """Reward statistics of a step.

    `zero_variance_groups` counts problems whose rollouts all earn the same: with the baselines
    `problem` and `prompt` they teach nothing.
    `reward_std_within_prompt` is the mean standard deviation of the rollouts of
    a (problem, prompt) pair, `reward_std_across_prompts` that of the prompts'
    mean rewards on a problem.  `categories` counts the outcomes, time-outs among them.
    """
    rewards = [[rollout.score.reward for rollout in group] for group in groups]
    within, across = [], []
    for group in groups:
        by_prompt: dict[str, list[float]] = {}
        for rollout in group:
            by_prompt.setdefault(rollout.prompt, []).append(rollout.score.reward)
        within += [float(np.std(own)) for own in by_prompt.values()]
        across.append(float(np.std([np.mean(own) for own in by_prompt.values()])))
    categories = Counter(rollout.score.category for group in groups for rollout in group)
    completions = [rollout.completion for group in groups for rollout in group]
    return {
        "reward_mean": float(np.mean([reward for group in rewards for reward in group])),
        "reward_std_within_prompt": float(np.mean(within)),
        "reward_std_across_prompts": float(np.mean(across)),
        "categories": dict(sorted(categories.items())),
        "zero_variance_groups": sum(max(group) == min(group) for group in rewards),
        "response_tokens_mean": float(np.mean([len(c.ids) for c in completions])),
        "truncated_fraction": float(np.mean([c.finish_reason == "length" for c in completions])),
    }
