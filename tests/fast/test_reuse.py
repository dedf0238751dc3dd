"""Leftovers of a fast round: each is claimed once, by its own group, and survives a resume."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.fast.pool import Pool
from fst_jax.fast.reuse import Leftovers
from fst_jax.rollout.engine import Completion
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem, Score


def problem(name: str) -> Problem:
    return Problem(name, f"Ask {name}?", f"say {name}", data={"live": True})


def rollout(name: str, prompt: str, number: int) -> Rollout:
    rng = np.random.default_rng(number)
    size = number % 4
    done = Completion(
        rng.integers(0, 300, size).astype(np.int32), -rng.random(size, np.float32), "length", 0.7, 3
    )
    score = Score(number / 100, f"größer\n{number}", "wrong")
    return Rollout(problem(name), prompt, (number, 7), done, str(number), score)


def texts(rollouts: list[Rollout]) -> list[str]:
    return [rollout.text for rollout in rollouts]


names, prompts = st.sampled_from("abc"), st.sampled_from(["one", "two"])


@given(
    st.lists(st.tuples(names, prompts), max_size=12),
    st.lists(st.tuples(names, prompts, st.integers(0, 3)), max_size=8),
)
def test_each_is_claimed_once_by_its_own_pair(
    held: list[tuple[str, str]], claims: list[tuple[str, str, int]]
) -> None:
    rollouts = [rollout(name, prompt, i) for i, (name, prompt) in enumerate(held)]
    leftovers = Leftovers(rollouts)
    left = list(rollouts)
    for name, prompt, most in claims:
        own = [r for r in left if (r.problem.id, r.prompt) == (name, prompt)][:most]
        assert texts(leftovers.claim(problem(name), prompt, most)) == texts(own)
        left = [r for r in left if r not in own]
        restored = Leftovers.from_json(json.loads(json.dumps(leftovers.to_json())))
        assert restored.to_json() == leftovers.to_json()


def test_what_is_restored_is_what_was_saved() -> None:
    saved = rollout("a", "one", 23)
    (found,) = Leftovers.from_json(Leftovers([saved]).to_json()).claim(problem("a"), "one", 5)
    assert found.problem == saved.problem and found.problem.data == {"live": True}
    assert found.context_ids == saved.context_ids and found.score == saved.score
    assert (found.prompt, found.text) == (saved.prompt, saved.text)
    for name in ("ids", "logprobs"):
        ours, theirs = getattr(found.completion, name), getattr(saved.completion, name)
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
    for name in ("finish_reason", "temperature", "weight_version"):
        assert getattr(found.completion, name) == getattr(saved.completion, name)


def test_only_prompts_in_use_are_kept() -> None:
    pool = Pool.start("one", population=2, rng_seed=0)
    leftovers = Leftovers.of_round([rollout("a", "one", 1), rollout("a", "two", 2)], pool)
    assert texts(leftovers.claim(problem("a"), "one", 9)) == ["1"]
    assert leftovers.claim(problem("a"), "two", 9) == []
