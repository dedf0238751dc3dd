"""Group advantages, by formula and by invariants; groups and their metrics."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.config import SlowSettings
from fst_jax.rollout.engine import Completion
from fst_jax.rollout.rollouts import Rollout
from fst_jax.slow.advantages import EPSILON, group_advantages
from fst_jax.slow.groups import group_metrics, samples_of
from fst_jax.tasks.task import Problem, Score

REWARDS = st.sampled_from([0.0, 0.1, 0.1 + 0.2, 1 / 3, 0.7, 1.0])
ROLLOUTS = st.lists(st.tuples(REWARDS, st.integers(0, 3)), min_size=1, max_size=24)


def split(rollouts: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    rewards, groups = zip(*rollouts, strict=True)
    return np.array(rewards, np.float64), np.array(groups)


@given(ROLLOUTS, st.booleans(), st.booleans())
def test_equals_the_formula(rollouts, normalize_std, normalize_batch):
    rewards, groups = split(rollouts)
    expected = []
    for reward, group in rollouts:
        own = [r for r, g in rollouts if g == group]
        mean = sum(own) / len(own)
        deviation = (sum((r - mean) ** 2 for r in own) / len(own)) ** 0.5
        scale = deviation + EPSILON if normalize_std else 1.0
        expected.append((reward - mean) / scale if len(set(own)) > 1 else None)
    learned = np.array([a for a in expected if a is not None])
    if normalize_batch and len(learned):
        scale = np.sqrt(np.mean((learned - learned.mean()) ** 2)) + EPSILON
        expected = [None if a is None else a / scale for a in expected]

    advantages, valid = group_advantages(rewards, groups, normalize_std, normalize_batch)
    assert advantages.dtype == np.float32
    assert valid.tolist() == [a is not None for a in expected]
    np.testing.assert_allclose(advantages, [a or 0.0 for a in expected], rtol=1e-5, atol=1e-6)


@given(ROLLOUTS, st.randoms(use_true_random=False), st.floats(-0.5, 0.5))
def test_order_labels_and_offset_do_not_matter(rollouts, random, offset):
    rewards, groups = split(rollouts)
    order = list(range(len(rewards)))
    random.shuffle(order)
    advantages, valid = group_advantages(rewards, groups)
    moved, moved_valid = group_advantages(rewards[order], 7 - 3 * groups[order])
    np.testing.assert_allclose(moved, advantages[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moved_valid, valid[order])
    shifted, _ = group_advantages(rewards + offset, groups)
    np.testing.assert_allclose(shifted[valid], advantages[valid], rtol=1e-4, atol=1e-5)


@given(st.floats(0, 1), st.integers(1, 9))
def test_a_group_without_variance_is_exactly_zero(reward, size):
    rewards = np.append(np.full(size, reward), [0.0, 1.0])
    groups = np.append(np.zeros(size, int), [1, 1])
    advantages, valid = group_advantages(rewards, groups)
    assert not advantages[:size].any() and not valid[:size].any()
    assert valid[size:].all()


@given(ROLLOUTS, st.booleans())
def test_leave_one_out_compares_with_the_others(rollouts, normalize_std):
    rewards, groups = split(rollouts)
    advantages, valid = group_advantages(
        rewards, groups, normalize_std=normalize_std, leave_one_out=True
    )
    for i, (reward, group) in enumerate(rollouts):
        others = [r for j, (r, g) in enumerate(rollouts) if g == group and j != i]
        assert valid[i] == any(r != reward for r in others) or len(others) > 1
        if valid[i]:
            own = [*others, reward]
            scale = np.std(own) + EPSILON if normalize_std else 1.0
            assert advantages[i] == pytest.approx((reward - np.mean(others)) / scale, abs=1e-5)
        else:
            assert advantages[i] == 0


def test_rounding_makes_no_variance():
    assert np.full(3, 0.1).std() > 0  # what a comparison of the deviation with 0 would see
    for rewards in (np.full(3, 0.1), np.full(3, 0.1 + 0.2), np.full(7, 0.7)):
        advantages, valid = group_advantages(rewards, np.zeros(len(rewards), int))
        assert not advantages.any() and not valid.any()


def test_normalised_advantages_have_unit_scale():
    rng = np.random.default_rng(0)
    rewards, groups = rng.random(64), np.repeat(np.arange(8), 8)
    advantages, _ = group_advantages(rewards, groups)
    for group in range(8):
        own = advantages[groups == group]
        assert abs(own.mean()) < 1e-6 and abs(own.std() - 1) < 1e-4
    advantages, _ = group_advantages(rewards, groups, normalize_std=False, normalize_batch=True)
    assert abs(advantages.std() - 1) < 1e-4
    assert np.ptp([advantages[groups == group].std() for group in range(8)]) > 0.1


def rollout(reward: float, prompt: str, size: int = 2, finish: str = "stop") -> Rollout:
    completion = Completion(
        np.arange(size, dtype=np.int32), -np.ones(size, np.float32), finish, 0.5, 0
    )
    problem = Problem("p", "question", "answer")
    return Rollout(problem, prompt, (1, 2), completion, "text", Score(reward, "", ""))


GROUPS = [
    [rollout(1, "a"), rollout(1, "a"), rollout(0, "b"), rollout(0, "b", 6, "length")],
    [rollout(0.5, "a"), rollout(0.5, "a"), rollout(0.5, "b"), rollout(0.5, "b")],
    [rollout(1, "a"), rollout(0, "a"), rollout(0.5, "b"), rollout(0.5, "b")],
]


def test_the_default_baseline_mixes_prompts():
    samples = samples_of(GROUPS, SlowSettings(normalize_std=False))
    assert [s.group for s in samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert [s.valid for s in samples] == [True] * 4 + [False] * 4 + [True] * 4
    np.testing.assert_allclose(
        [s.advantage for s in samples], [0.5, 0.5, -0.5, -0.5, *[0] * 4, 0.5, -0.5, 0, 0]
    )
    first, source = samples[0], GROUPS[0][0]
    assert first.context_ids == (1, 2) and first.temperature == 0.5
    assert first.ids is source.completion.ids and first.logprobs is source.completion.logprobs


def test_the_prompt_baseline_compares_within_each_prompt():
    settings = dataclasses.replace(SlowSettings(), baseline="prompt", normalize_std=False)
    samples = samples_of(GROUPS, settings)
    assert [s.group for s in samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert [s.valid for s in samples] == [False] * 8 + [True, True, False, False]
    np.testing.assert_allclose([s.advantage for s in samples], [*[0.0] * 8, 0.5, -0.5, 0, 0])


def test_the_batch_baseline_is_one_group():
    samples = samples_of(GROUPS, SlowSettings(objective="reinforce"))
    assert [s.group for s in samples] == [0] * 4 + [1] * 4 + [2] * 4  # denominators as ever
    assert all(s.valid for s in samples)
    rewards = [rollout.score.reward for group in GROUPS for rollout in group]
    np.testing.assert_allclose([s.advantage for s in samples], np.array(rewards) - 0.5)


def test_rloo_takes_the_mean_of_the_other_rollouts():
    samples = samples_of(GROUPS, SlowSettings(objective="rloo"))
    assert [s.valid for s in samples] == [True] * 4 + [False] * 4 + [True] * 4
    expected = [2 / 3, 2 / 3, -2 / 3, -2 / 3, *[0] * 4, 2 / 3, -2 / 3, 0, 0]
    np.testing.assert_allclose([s.advantage for s in samples], expected, atol=1e-7)


def test_penalties_are_taken_off_the_rewards():
    """So that a group of equal rewards learns to return to the reference."""
    penalties = np.arange(12) / 12
    samples = samples_of(GROUPS, SlowSettings(kl_placement="reward"), penalties)
    assert all(s.valid for s in samples)
    rewards = np.array([rollout.score.reward for group in GROUPS for rollout in group])
    left = (rewards - penalties).reshape(3, 4)
    expected = left - left.mean(axis=1, keepdims=True)
    np.testing.assert_allclose([s.advantage for s in samples], expected.ravel(), atol=1e-7)


def test_group_metrics():
    metrics = group_metrics(GROUPS)
    assert metrics["reward_mean"] == pytest.approx(6 / 12)
    assert metrics["reward_std_within_prompt"] == pytest.approx(0.5 / 6)
    assert metrics["reward_std_across_prompts"] == pytest.approx(0.5 / 3)
    assert metrics["zero_variance_groups"] == 1
    assert metrics["response_tokens_mean"] == pytest.approx(28 / 12)
    assert metrics["truncated_fraction"] == pytest.approx(1 / 12)
