"""How well a model does what system prompts ask, in wordings that its corpus never held.

For each kind of question and each prompt (both instructions, the poor strategy, the format
alone, the strategy alone, a generic sentence) the shares of completions that are right, that
follow the prompt, and that use the good strategy or the demanded format.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fst_jax.rollout.chat import Chat
from fst_jax.rollout.engine import Engine, Request
from fst_jax.small_world.answers import read
from fst_jax.small_world.instructions import HELD_OUT, as_prompt
from fst_jax.small_world.questions import KINDS, Kind, Question

GENERIC = "Solve the problem."
SAMPLES = 4  # of each question
MAX_NEW_TOKENS = 32

# What each prompt asks for: (good strategy, demanded format); None is not asked.
PROMPTS: Mapping[str, tuple[bool | None, bool | None]] = {
    "good strategy + format": (True, True),
    "poor strategy + format": (False, True),
    "format": (None, True),
    "good strategy": (True, None),
    "generic": (None, None),
}


def obedience(engine: Engine, chat: Chat, questions: int, seed: int = 0) -> dict[str, Any]:
    """{kind: {prompt: {"right", "follows", "good", "format"}}}, shares at temperature 1.

    "hard" stands beside the prompts: the first of them on questions of the hard shape.
    """
    rng = np.random.default_rng(seed)
    return {
        name: {
            label: _shares(engine, chat, kind, kind.usual, asked, questions, rng)
            for label, asked in PROMPTS.items()
        }
        | {"hard": _shares(engine, chat, kind, kind.hard, (True, True), questions, rng)}
        for name, kind in KINDS.items()
    }


def instructed(figures: Mapping[str, Any], share: str = "right") -> list[float]:
    """Accuracy, or another share, with both instructions, of each kind of question."""
    return [of_kind["good strategy + format"][share] for of_kind in figures.values()]


def following(figures: Mapping[str, Any]) -> float:
    """Share of completions that follow their prompt, over all prompts that ask something."""
    asking = [label for label, asked in PROMPTS.items() if asked != (None, None)]
    return float(np.mean([figures[kind][label]["follows"] for kind in figures for label in asking]))


def _shares(
    engine: Engine,
    chat: Chat,
    kind: Kind,
    shape: tuple[int, int],
    asked: tuple[bool | None, bool | None],
    count: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    drawn = [kind.draw(rng, shape) for _ in range(count)]
    requests = [_request(chat, kind, question, asked, rng) for question in drawn]
    good, format, right, follows = [], [], [], []
    for question, completions in zip(drawn, engine.generate(requests), strict=True):
        for completion in completions:
            answer = read(chat.decode(completion.ids.tolist()))
            good.append(kind.takes_steps(answer.steps))
            format.append(answer.format == kind.format)
            right.append(format[-1] and answer.content == question.answer)
            follows.append(asked[0] in (None, good[-1]) and asked[1] in (None, format[-1]))
    shares = {"right": right, "follows": follows, "good": good, "format": format}
    return {name: round(float(np.mean(hits)), 4) for name, hits in shares.items()}


def _request(
    chat: Chat,
    kind: Kind,
    question: Question,
    asked: tuple[bool | None, bool | None],
    rng: np.random.Generator,
) -> Request:
    sentences = [_held_out(rng, "remark")]
    if asked[0] is not None:
        sentences.append(_held_out(rng, kind.good if asked[0] else kind.poor))
    if asked[1]:
        sentences.append(_held_out(rng, kind.format))
    prompt = GENERIC if len(sentences) == 1 else "\n".join(rng.permutation(sentences))
    ids = chat.encode([{"role": "user", "content": question.text}], prompt)
    return Request(
        tuple(ids), SAMPLES, MAX_NEW_TOKENS, stop_ids=chat.stop_ids, seed=int(rng.integers(2**31))
    )


def _held_out(rng: np.random.Generator, kind: str) -> str:
    wordings: Sequence[str] = HELD_OUT[kind]
    return as_prompt(wordings[int(rng.integers(len(wordings)))])
