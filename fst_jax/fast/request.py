"""What a language model is asked for: an edit, a new prompt, or a merge of two.

The paper does not print its reflector's instruction; the wording is ours.  The
model sees the prompt, or both, and scored answers under it within a budget of
tokens: the worst first, one of each kind of failure before a second of any, each
answer to a problem once, and a share of what already works.  Tokens are those of
the policy's tokenizer, which is exact where the policy reflects on itself and an
estimate for any other model.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fst_jax.config import Recipe
from fst_jax.fast.reflect import Job
from fst_jax.fast.validate import normalised
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem

PLACEHOLDERS = ("the edited prompt", "the new prompt", "the merged prompt")  # of the wording below
FIELD_SHARE = 0.1  # of the budget, for one question, answer or feedback; the middle is left out
FAILED_SHARE = 0.8  # of the budget; the rest shows what already works
KINDS = 5  # of failures whose numbers are told

_EDIT = """\
A language model answers problems of one kind under a system prompt. {work}

The current system prompt:
{fence}
{parent}
{fence}

What the model answered under it, with the score (1 is perfect) and the judge's feedback:

{examples}

{steps}
- Write what holds for every problem of this kind. Do not mention these examples, and do not copy \
their questions or answers.
- Keep it within about {words} words.

End with the complete {name} prompt, and nothing after it, in a block like this:
{fence}
the {name} prompt
{fence}"""

_WORK: dict[Recipe, str] = {
    "light": "Your work is to improve that system prompt by one small edit.",
    "full": "Your work is to write a better system prompt in its place.",
}
_NAME: dict[Recipe, str] = {"light": "edited", "full": "new"}
_STEPS: dict[Recipe, str] = {
    "light": """\
First write a short diagnosis: which mistake in these answers costs the most, and which sentence \
of the prompt causes it or which one is missing. Then edit the prompt to prevent that mistake.
- Change as little as possible: add, reword or remove one or two sentences, and keep the rest \
word for word.""",
    "full": """\
First write a short diagnosis: what goes wrong in these answers, what goes right, and why. Then \
write a system prompt that prevents every such mistake.
- You are free to order, word and lay it out anew; keep what the model cannot do without, such as \
the form of the answer.""",
}

_MERGE = """\
A language model answers problems of one kind under a system prompt. There are two prompts, each \
of which is better than the other on some problems. Your work is to merge them into one that is as \
good as the better of them on every problem.

Prompt A:
{fence}
{parent}
{fence}

What the model answered under A, with the score (1 is perfect) and the judge's feedback:

{examples}

Prompt B:
{fence}
{partner}
{fence}

What it answered under B:

{partner_examples}

First write a short diagnosis: which sentences of A and which of B do the work. Then write one \
prompt that has both.
- Keep the sentences that help word for word, say nothing twice, and settle contradictions in \
favour of what scored better.
- Do not mention these examples, and do not copy their questions or answers.
- Keep it within about {words} words.

End with the complete merged prompt, and nothing after it, in a block like this:
{fence}
the merged prompt
{fence}"""


@dataclass(frozen=True)
class Wording:
    """How jobs are put into words."""

    recipe: Recipe
    prompt_words: int  # asked of the new prompt
    example_tokens: int  # of all answers shown in one request
    count_tokens: Callable[[str], int]
    shown: Callable[[Problem], str]  # a problem as the policy is asked it

    def request(self, job: Job) -> tuple[str, str]:
        """The instruction of one job, complete, and the fence in which it wants the prompt."""
        share = self.example_tokens // (1 if job.partner is None else 2)
        texts = {"parent": job.parent, "examples": self._examples(job.rollouts, share)}
        if job.partner is not None:
            texts["partner"] = job.partner
            texts["partner_examples"] = self._examples(job.partner_rollouts, share)
        runs = (run for text in texts.values() for run in re.findall("`+", text))
        fence = "`" * max(3, max(map(len, runs), default=0) + 1)
        if job.partner is not None:
            return _MERGE.format(fence=fence, words=self.prompt_words, **texts), fence
        text = _EDIT.format(
            fence=fence,
            words=self.prompt_words,
            work=_WORK[self.recipe],
            steps=_STEPS[self.recipe],
            name=_NAME[self.recipe],
            **texts,
        )
        return text, fence

    def _examples(self, rollouts: Sequence[Rollout], budget: int) -> str:
        """As many distinct answers as `budget` tokens hold, and how many there were."""
        shown: list[str] = []
        used = 0
        for rollout in worst_first(rollouts):
            example = (
                f"Example {len(shown) + 1}, score {rollout.score.reward:g}\n"
                f"Question: {self._cut(self.shown(rollout.problem), budget)}\n"
                f"Answer: {self._cut(rollout.text, budget)}\n"
                f"Feedback: {self._cut(rollout.score.feedback, budget)}\n"
            )
            share = FAILED_SHARE if rollout.score.reward < 1 else 1.0
            size = self.count_tokens(example)
            if used + size <= share * budget:
                shown.append(example)
                used += size
        return "\n".join([*shown, _tally(rollouts)])

    def _cut(self, text: str, budget: int) -> str:
        """The beginning and the end of a text, within its share of the budget."""
        text = shown = text.strip()
        left, most = len(text), int(FIELD_SHARE * budget)
        while left > 0 and (size := self.count_tokens(shown)) > most:
            left = left * most // size
            half = left // 2
            shown = f"{text[:half]} […] {text[len(text) - half :]}"
        return shown


def worst_first(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Distinct answers by reward; among equals, every kind once before any kind again."""
    distinct = {(r.problem.id, normalised(r.text)): r for r in rollouts}.values()
    seen: Counter[tuple[float, str]] = Counter()
    ranked = []
    for rollout in distinct:
        kind = (rollout.score.reward, rollout.score.category)
        ranked.append((rollout.score.reward, seen[kind], rollout))
        seen[kind] += 1
    return [rollout for _, _, rollout in sorted(ranked, key=lambda entry: entry[:2])]


def _tally(rollouts: Sequence[Rollout]) -> str:
    """How many answers were perfect, and the most frequent kinds of those that were not."""
    failed = Counter(r.score.category[:80] for r in rollouts if r.score.reward < 1)
    text = f"{len(rollouts) - failed.total()} of all {len(rollouts)} answers were perfect"
    kinds = ", ".join(f"{kind} ({count})" for kind, count in failed.most_common(KINDS))
    return f"{text}; the others by kind: {kinds}." if kinds else f"{text}."
