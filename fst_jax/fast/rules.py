"""A reflector without a model: failure feedback becomes instruction lines.

A task's feedback opens with advice that holds for any problem.  This reflector
takes the advice of the failure seen most often in the minibatch and makes one
edit of the parent's lines with it.  It is the offline default, strong where a
task's advice is good and useless where it is not; the paper always asks a
language model.  It cannot phrase, so it never changes the words of a line.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence

from fst_jax.fast.reflect import Job, Proposal
from fst_jax.fast.validate import normalised
from fst_jax.rollout.rollouts import Rollout

# How often each edit is tried, among those that apply.  Advice is added more often than it
# takes the place of a line; removing and moving lines clears away what does not help.
EDITS = {"append": 4, "prepend": 2, "replace": 2, "remove": 1, "move": 1}


class RulesReflector:
    """One added, replaced, removed or moved line, chosen from failure feedback."""

    name = "rules"

    def __init__(self, count_tokens: Callable[[str], int], max_tokens: int):
        """Edits that would make a prompt longer than `max_tokens` are not made."""
        self.count_tokens = count_tokens
        self.max_tokens = max_tokens

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> list[Proposal]:
        """One edit for each job."""
        return [self._edit(job, rng) for job in jobs]

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
        advice = rollout.score.feedback.strip().partition("\n")[0].strip()
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


def _same(line: str) -> str:
    """Lines that differ in case, spaces or the final stop say the same."""
    return normalised(line).casefold().rstrip(".!")
