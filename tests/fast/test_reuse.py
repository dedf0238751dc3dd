"""Leftovers of a fast round: each is claimed once, by its own group, and survives a resume."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.config import SlowSettings
from fst_jax.fast.pool import Pool
from fst_jax.fast.reuse import Leftovers
from fst_jax.rollout.engine import Completion, Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.rollout.rollouts import Rollout
from fst_jax.slow.groups import samples_of
from fst_jax.slow.learner import Learner
from fst_jax.slow.packing import pack
from fst_jax.tasks.task import Problem, Score
from tests.slow import tiny


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


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 9), st.integers(0, 8))
def test_nothing_older_than_allowed_is_claimed(versions: list[int], since: int, most: int) -> None:
    rollouts = []
    for i, version in enumerate(versions):
        own = rollout("a", "one", i)
        done = replace(own.completion, weight_version=version)
        rollouts.append(replace(own, completion=done))
    leftovers = Leftovers(rollouts)
    young = [r for r in rollouts if r.completion.weight_version >= since]
    assert texts(leftovers.claim(problem("a"), "one", most, since)) == texts(young[:most])
    assert texts(leftovers.claim(problem("a"), "one", 99)) == texts(young[most:])


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


def test_a_reused_group_moves_the_weights_as_a_fresh_one_does() -> None:
    """With no step between sampling and use: the same samples, the same gradient, bit for bit."""
    settings = SlowSettings(learning_rate=1e-2, warmup_steps=0, micro_batch_rows=2)
    mesh = tiny.one_device()
    graphdef, base = nnx.split(tiny.model())
    engine = LocalEngine(tiny.model(), mesh, batch_size=8)
    asked = [Request((5, 9, i), n=4, max_new_tokens=6, temperature=1.0, seed=i) for i in range(2)]
    fresh = [
        [
            Rollout(problem(str(i)), "one", request.prompt_ids, done, "", Score(i ^ j & 1, "", ""))
            for j, done in enumerate(group)
        ]
        for i, (request, group) in enumerate(zip(asked, engine.generate(asked), strict=True))
    ]
    saved = Leftovers(r for group in fresh for r in group[:3]).to_json()
    leftovers = Leftovers.from_json(json.loads(json.dumps(saved)))
    reused = [
        [*leftovers.claim(problem(str(i)), "one", 3, since=0), *group[3:]]
        for i, group in enumerate(fresh)
    ]
    assert all(own is not other for own, other in zip(reused[0][:3], fresh[0], strict=False))
    moved = []
    for groups in (fresh, reused):
        start = nnx.merge(graphdef, jax.tree.map(jnp.copy, base))  # a step donates them
        learner = Learner(start, settings, mesh)
        metrics = learner.step(pack(samples_of(groups, settings), 2, 2, mesh))
        assert metrics["grad_norm"] > 0
        moved.append((metrics, [np.asarray(x) for x in jax.tree.leaves(learner.params)]))
    (one, weights), (other, others) = moved
    assert one == other
    jax.tree.map(np.testing.assert_array_equal, weights, others)


def test_only_prompts_in_use_are_kept() -> None:
    pool = Pool.start("one", population=2, rng_seed=0)
    leftovers = Leftovers.of_round([rollout("a", "one", 1), rollout("a", "two", 2)], pool)
    assert texts(leftovers.claim(problem("a"), "one", 9)) == ["1"]
    assert leftovers.claim(problem("a"), "two", 9) == []
