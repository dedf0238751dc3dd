"""Rollouts as plain data: exact, for what outlives the process, or to be read."""

from base64 import b64decode, b64encode
from dataclasses import asdict
from typing import Any

import numpy as np

from fst_jax.rollout.engine import Completion
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem, Score


def readable(rollout: Rollout) -> dict[str, Any]:
    """What a person reads of a rollout."""
    return {
        "problem": rollout.problem.id,
        "question": rollout.problem.question,
        "answer": rollout.problem.answer,
        "prompt": rollout.prompt,
        "text": rollout.text,
        "reward": rollout.score.reward,
        "category": rollout.score.category,
        "feedback": rollout.score.feedback,
    }


def as_text(rollout: Rollout) -> str:
    """A rollout for people who read along."""
    problem, score = rollout.problem, rollout.score
    prompt = f"[prompt] {rollout.prompt}\n" if rollout.prompt else ""
    return (
        f"{prompt}[question] {problem.question}\n[answer] {rollout.text}\n"
        f"[reward {score.reward:g}, {score.category}] expected: {problem.answer}"
    )


def to_plain(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON has it; its problem's own `data` is left out, as it is scored already."""
    problem, done = rollout.problem, rollout.completion
    return {
        "problem": [problem.id, problem.question, problem.answer],
        "prompt": rollout.prompt,
        "context_ids": _text(np.array(rollout.context_ids, np.int32)),
        "ids": _text(done.ids),
        "logprobs": _text(done.logprobs),
        "finish_reason": done.finish_reason,
        "temperature": done.temperature,
        "weight_version": done.weight_version,
        "text": rollout.text,
        "score": asdict(rollout.score),
    }


def from_plain(entry: dict[str, Any]) -> Rollout:
    """Inverse of `to_plain`, to the last bit; raises KeyError, TypeError or ValueError."""
    completion = Completion(
        ids=_array(entry["ids"], np.int32),
        logprobs=_array(entry["logprobs"], np.float32),
        finish_reason=entry["finish_reason"],
        temperature=entry["temperature"],
        weight_version=entry["weight_version"],
    )
    context_ids = tuple(_array(entry["context_ids"], np.int32).tolist())
    problem, score = Problem(*entry["problem"]), Score(**entry["score"])
    return Rollout(problem, entry["prompt"], context_ids, completion, entry["text"], score)


def _text(array: np.ndarray) -> str:
    """The bytes of an array in base64: exact, and a third of the size of written numbers."""
    return b64encode(array.tobytes()).decode()


def _array(text: str, dtype: Any) -> np.ndarray:
    return np.frombuffer(b64decode(text), dtype)
