"""A reflector without a model: failure feedback becomes instruction lines.

A task's feedback opens with advice that holds for any problem.  This reflector
takes the advice of the failure seen most often in the minibatch and makes one
edit of the parent's lines with it.  A rewrite is all lines of the parent and all
advice at once, in any order; a merge is the parent's lines and then those of its
partner that it lacks.  It is the offline default, strong where a task's advice is
good and useless where it is not; the paper always asks a language model.  It
cannot phrase, so it never changes the words of a line.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from fst_jax.config import Recipe
from fst_jax.fast.reflect import Job, Proposal
from fst_jax.fast.validate import normalised
from fst_jax.rollout.rollouts import Rollout

# How often each edit is tried, among those that apply.  Advice is added more often than it
# takes the place of a line; removing and moving lines clears away what does not help.
EDITS = {"append": 4, "prepend": 2, "replace": 2, "remove": 1, "move": 1}


class RulesReflector:
    """One added, replaced, removed or moved line, chosen from failure feedback."""

    name = "rules"

    def __init__(
        self, count_tokens: Callable[[str], int], max_tokens: int, recipe: Recipe = "light"
    ):
        """Edits that would make a prompt longer than `max_tokens` are not made."""
        self.count_tokens = count_tokens
        self.max_tokens = max_tokens
        self.recipe = recipe

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> list[Proposal]:
        """One edit, rewrite or merge for each job."""
        return [self._proposal(job, rng) for job in jobs]

    def _proposal(self, job: Job, rng: random.Random) -> Proposal:
        if job.partner is not None:
            return self._merge(job.parent, job.partner)
        return self._edit(job, rng) if self.recipe == "light" else self._rewrite(job, rng)

    def _merge(self, parent: str, partner: str) -> Proposal:
        """The parent and as many of its partner's other lines as fit."""
        lines = parent.strip().splitlines()
        merged = self._with(lines, partner.strip().splitlines())
        if merged == lines:
            return Proposal(refusal="nothing to merge")
        return Proposal(text="\n".join(merged))

    def _rewrite(self, job: Job, rng: random.Random) -> Proposal:
        """The parent's lines and all advice, in any order, as much as fits."""
        lines = [line for line in job.parent.strip().splitlines() if line.strip()]
        failures = [rollout for rollout in job.rollouts if rollout.score.reward < 1]
        everything = [*lines, *sorted({_advice_of(rollout) for rollout in failures} - {""})]
        rng.shuffle(everything)
        rewritten = self._with([], everything)
        if rewritten == lines:
            return Proposal(refusal="nothing to edit")
        return Proposal(text="\n".join(rewritten))

    def _with(self, lines: Sequence[str], more: Iterable[str]) -> list[str]:
        """`lines` and those of `more` that say something else and still fit."""
        lines, said = list(lines), {_same(line) for line in lines}
        for line in more:
            longer = [*lines, line]
            if _same(line) in said or self.count_tokens("\n".join(longer)) > self.max_tokens:
                continue
            lines = longer
            said.add(_same(line))
        return lines

    def _edit(self, job: Job, rng: random.Random) -> Proposal:
        lines = job.parent.strip().splitlines()
        failures = [rollout for rollout in job.rollouts if rollout.score.reward < 1]
        new, standing = _advice(failures, lines, rng)
        said = [i for i, line in enumerate(lines) if line.strip()]
        edited: dict[str, list[str]] = {}
        if new:
            edited["append"] = [*lines, new]
            edited["prepend"] = [new, *lines]
        if new and said:
            i = rng.choice(standing or said)  # a line that is not helping, or any line
            edited["replace"] = [*lines[:i], new, *lines[i + 1 :]]
        if len(said) > 1:
            i, j = rng.sample(said, 2)
            rest = [*lines[:i], *lines[i + 1 :]]
            edited["remove"] = rest
            edited["move"] = [*rest[:j], lines[i], *rest[j:]]
        texts = {name: "\n".join(edit) for name, edit in edited.items()}
        names = [name for name in texts if self.count_tokens(texts[name]) <= self.max_tokens]
        if not names:
            return Proposal(refusal="nothing to edit")
        [chosen] = rng.choices(names, weights=[EDITS[name] for name in names])
        return Proposal(text=texts[chosen])


def _advice(
    failures: Sequence[Rollout], lines: Sequence[str], rng: random.Random
) -> tuple[str, list[int]]:
    """Advice to add, "" for none, and the lines that are advice for what still fails.

    The advice is that of the most frequent category with any that does not
    stand in the prompt yet; within a category, frequent advice is likelier.
    """
    by_category: dict[str, Counter[str]] = {}
    for rollout in failures:
        advice = _advice_of(rollout)
        counts = by_category.setdefault(rollout.score.category, Counter())
        if advice:
            counts[advice] += 1
    frequency = Counter(rollout.score.category for rollout in failures)
    categories = sorted(by_category, key=lambda name: (-frequency[name], rng.random()))

    where = {_same(line): i for i, line in enumerate(lines)}
    said = {_same(advice) for counts in by_category.values() for advice in counts}
    standing = sorted(i for line, i in where.items() if line in said)
    for category in categories:
        new = [advice for advice in by_category[category] if _same(advice) not in where]
        if new:
            weights = [by_category[category][advice] for advice in new]
            return rng.choices(new, weights=weights)[0], standing
    return "", standing


def _advice_of(rollout: Rollout) -> str:
    """The opening line of a rollout's feedback, which holds for any problem."""
    return rollout.score.feedback.strip().partition("\n")[0].strip()


def _same(line: str) -> str:
    """Lines that differ in case, spaces or the final stop say the same."""
    return normalised(line).casefold().rstrip(".!")
