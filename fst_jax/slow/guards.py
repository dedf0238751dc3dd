"""What watches a run's numbers: three guards that stop it, and hints that only warn.

A step is watched by its metrics, which the host has anyway, and by its rollouts.  Guards stop a run
when they have been broken `guards.patience` steps in a row:

    nonfinite     an update was skipped, since its loss or gradient was not finite
    max_mismatch  mismatch_k3 > guards.max_mismatch, sampler against learner
    max_kl        kl_k3 > guards.max_kl, θ against its reference

Hints are texts in `warnings` of the `step` event, for as long as what they name lasts; a step
without any has no `warnings`.  Each begins with its code: `length_explosion: …`.  Their thresholds
were chosen so that of the recorded runs of the small world (`reproduction/`) none that learned has
a hint, and are no settings: a hint stops nothing.

`Guards` is all that is remembered from one step to the next.  It is a part of a run's checkpoint,
so that a resumed run warns and stops where an uninterrupted one does.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from fst_jax.config import Config
from fst_jax.rollout.rollouts import Rollout
from fst_jax.slow.objectives import recipe

Guard = Literal["nonfinite", "max_mismatch", "max_kl"]
# The figure that a ceiling is for, and what to do about it.
CEILINGS: dict[Guard, tuple[str, str]] = {
    "max_mismatch": (
        "mismatch_k3",
        "the sampler's log-probabilities are not the learner's: look at the server, its dtype and "
        "rollout.temperature, or set fast.reuse_staleness lower",
    ),
    "max_kl": (
        "kl_k3",
        "θ has left its reference: lower slow.learning_rate, or raise slow.kl_coefficient",
    ),
}

FIRST_STEPS = 5  # of a run or stage, with which it is compared
HINT_STEPS = 5  # in a row: one odd batch is no sign; the recorded runs' worst are over as many
# Of the first steps' metrics, the one that shows a change soonest: it may begin among them.
FIRST: dict[str, Callable[[list[float]], float]] = {"response_tokens_mean": min, "entropy": max}
# Learning to work step by step made completions 3.4 times as long in the recorded runs.
LONGER = 4.0
# A share of the first steps' entropy.  Recorded runs fell to 0.09 of it before they had learned the
# task, and to 0.005 after, where there is nothing left to explore.
COLLAPSED = 0.05
LEARNED = 0.8  # mean reward from which a low entropy is no fault
ALIKE = 0.9  # share of the problems: of 16 with two answers, chance gives one step in 2000
MOST = 0.5  # of the completions; the recorded runs had at most 0.11
# Recorded runs without any variance for 29 steps still learned by luck, none of those for 30.
SILENT_STEPS = 30


@dataclass(frozen=True)
class Guards:
    """What is remembered of the steps before: JSON-able."""

    broken: dict[str, int] = field(default_factory=dict)  # guard → steps in a row
    hinted: dict[str, int] = field(default_factory=dict)  # code of a hint → steps in a row
    first: dict[str, list[float]] = field(default_factory=dict)  # metric → its first values
    task: str = ""  # whose first steps they are

    @property
    def in_doubt(self) -> bool:
        """Whether a guard was broken in the newest step: older checkpoints may be better ones."""
        return bool(self.broken)

    @property
    def rested(self) -> "Guards":
        """As after a stop: the run, if it goes on, has all its patience again."""
        return replace(self, broken={})


class Stop(NamedTuple):
    """A guard's reason to stop."""

    guard: Guard
    message: str


class Seen(NamedTuple):
    """What hints look at: a step, and the first ones."""

    metrics: dict[str, Any]
    groups: Sequence[Sequence[Rollout]]
    first: dict[str, float]  # of `FIRST`; empty until the first steps are over
    config: Config


def watch(
    guards: Guards,
    config: Config,
    step: int,
    metrics: dict[str, Any],
    groups: Sequence[Sequence[Rollout]],
) -> tuple[Guards, list[str], Stop | None]:
    """The guards after a step, its hints, and why the run is to stop, if it is.

    A step that was not finite says nothing else.
    """
    if metrics["nonfinite_steps"] > 0:
        count = guards.broken.get("nonfinite", 0) + 1
        guards = replace(guards, broken=guards.broken | {"nonfinite": count})
        return guards, [], _stop(guards, config, step, metrics)
    broken: dict[str, int] = {
        name: guards.broken.get(name, 0) + 1
        for name, (figure, _) in CEILINGS.items()
        if _above(metrics.get(figure), getattr(config.guards, name))
    }
    task = metrics.get("task", "")
    if task != guards.task:  # another stage of a stream: its own first steps
        guards = Guards(task=task)
    begun = {
        n: FIRST[n](values) for n, values in guards.first.items() if len(values) == FIRST_STEPS
    }
    seen = Seen(metrics, groups, begun, config)
    told = {code: text for code, hint in HINTS.items() if (text := hint.says(seen))}
    hinted = {code: guards.hinted.get(code, 0) + 1 for code in told}
    first = {n: [*guards.first.get(n, []), metrics[n]][:FIRST_STEPS] for n in FIRST}
    guards = Guards(broken, hinted, first, task)
    warnings = [f"{code}: {told[code]}" for code, n in hinted.items() if n >= HINTS[code].steps]
    return guards, warnings, _stop(guards, config, step, metrics)


def _above(value: float | None, ceiling: float | None) -> bool:
    return value is not None and ceiling is not None and value > ceiling


def _stop(guards: Guards, config: Config, step: int, metrics: dict[str, Any]) -> Stop | None:
    """The first guard that has been broken for long enough."""
    for name in ("nonfinite", *CEILINGS):
        count = guards.broken.get(name, 0)
        if count < config.guards.patience:
            continue
        steps = f"{count} steps in a row, the last of them step {step}" if count > 1 else "a step"
        if name == "nonfinite":
            return Stop(
                name,
                f"the loss or its gradient was not finite in {steps}; its update was skipped, so "
                "that θ is as it was before: lower slow.learning_rate, set model.dtype to "
                "float32, or look at the rollouts",
            )
        figure, advice = CEILINGS[name]
        ceiling = getattr(config.guards, name)
        return Stop(
            name,
            f"{figure} was above guards.{name} = {ceiling:g} in {steps}, at {metrics[figure]:.3g}: "
            f"{advice}; where such figures are right, raise guards.{name}, or set it to null",
        )
    return None


# Hints.  Each says what it sees in a step, or "" where there is nothing to say.


def length_explosion(seen: Seen) -> str:
    """L > 4 · min(L₁ … L₅), where L is response_tokens_mean."""
    now, first = seen.metrics["response_tokens_mean"], seen.first.get("response_tokens_mean")
    if first is None or now <= LONGER * first:
        return ""
    return (
        f"completions have {now:.1f} tokens on average, {now / first:.1f} times the {first:.1f} of "
        "the first steps: does the reward pay for length?"
    )


def entropy_collapse(seen: Seen) -> str:
    """H < 0.05 · max(H₁ … H₅) while the mean reward is below 0.8; H is entropy, per token."""
    now, first = seen.metrics["entropy"], seen.first.get("entropy")
    if first is None or now >= COLLAPSED * first or seen.metrics["reward_mean"] >= LEARNED:
        return ""
    return (
        f"entropy is {now:.3g} nats, {now / first:.1%} of the first steps', at a mean reward of "
        f"{seen.metrics['reward_mean']:.2f}: nothing new is tried; lower slow.learning_rate, or "
        "raise slow.kl_coefficient"
    )


def same_answers(seen: Seen) -> str:
    """max_t S(t) ≥ 0.9 and max_t S(t) > max_a A(a), over at least two problems.

    S(t) is the mean over the step's problems of the share of their completions whose text is t,
    A(a) the share of its problems whose known answer is a.
    """
    texts: dict[str, Counter[str]] = {}  # by problem, which a step may hold twice
    answers = {}
    for group in seen.groups:
        problem = group[0].problem
        answers[problem.id] = problem.answer
        texts.setdefault(problem.id, Counter()).update(rollout.text.strip() for rollout in group)
    shares: dict[str, float] = {}
    for own in texts.values():
        for text, count in own.items():
            shares[text] = shares.get(text, 0.0) + count / own.total() / len(texts)
    text, problems = max(shares, key=lambda text: shares[text]), len(texts)
    known = Counter(answer for answer in answers.values() if answer)
    share, right = shares[text], max(known.values(), default=0) / problems
    if problems < 2 or share < ALIKE or share <= right + 1e-9:  # a sum of fractions
        return ""
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    return (
        f"{share:.0%} of the completions of {problems} different problems are {shown!r}: does the "
        "reward look at the problem?"
    )


def truncation(seen: Seen) -> str:
    """truncated_fraction > 0.5."""
    share = seen.metrics["truncated_fraction"]
    if share <= MOST:
        return ""
    return (
        f"{share:.0%} of the completions were cut off at rollout.max_new_tokens = "
        f"{seen.config.rollout.max_new_tokens}: raise it, or reward shorter ones"
    )


def no_variance(seen: Seen) -> str:
    """In every group of the step all rewards are the same, for 30 steps; not for a student."""
    if seen.config.distill.enabled:  # which learns without rewards
        return ""
    rewards = [rollout.score.reward for group in seen.groups for rollout in group]
    if seen.metrics["zero_variance_groups"] < len(seen.groups):
        return ""
    if recipe(seen.config.slow).baseline == "batch" and min(rewards) < max(rewards):
        return ""
    mean = seen.metrics["reward_mean"]
    advice = (
        "the problems are solved; choose harder ones"
        if mean > LEARNED
        else "choose easier problems or a better prompt, or raise rollout.group_size"
    )
    return f"all rollouts of each problem earn the same, {mean:.2f} on average: {advice}"


@dataclass(frozen=True)
class Hint:
    """What a step may show, and after how many in a row it is said."""

    says: Callable[[Seen], str]
    steps: int = HINT_STEPS


HINTS = {
    "length_explosion": Hint(length_explosion),
    "entropy_collapse": Hint(entropy_collapse),
    "same_answers": Hint(same_answers),
    "truncation": Hint(truncation),
    "no_variance": Hint(no_variance, SILENT_STEPS),
}
