"""Choices of a round: parents as their names say, pairs that complement each other."""

import random
from collections import Counter

import pytest
from gepa.proposer.base import CandidateProposal
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.fast.choice import EPSILON, gain, pair_to_merge, parent_selector
from fst_jax.fast.evolve import _gepa_state
from fst_jax.fast.pool import Pool, Prompt


def pool_of(*scores: list[float]) -> Pool:
    """Prompts with a score on each of as many problems, the first the seed."""
    prompts = [
        Prompt(
            f"prompt {i}",
            origin="seed" if i == 0 else "rules",
            scores={"abcdef"[j]: float(score) for j, score in enumerate(row)},
        )
        for i, row in enumerate(scores)
    ]
    return Pool(tuple(prompts), (prompts[0].id,))


POOL = pool_of(
    [0.4, 0.4, 0.4, 0.4],  # dominated
    [0.9, 0.9, 0.9, 0.1],  # best by mean, on three fronts
    [0.5, 0.5, 0.5, 0.5],  # third by mean, on none
    [0.0, 0.0, 0.0, 0.9],  # worst by mean, on one front
)


@pytest.mark.parametrize(
    ("choice", "population", "expected"),
    [
        ("pareto", 2, {1: 0.75, 3: 0.25}),
        ("top_k_pareto", 2, {1: 1.0}),
        ("top_k_pareto", 4, {1: 0.75, 3: 0.25}),
        ("best", 2, {1: 1.0}),
        ("epsilon_greedy", 2, {1: 1 - 0.75 * EPSILON} | dict.fromkeys((0, 2, 3), EPSILON / 4)),
    ],
)
def test_parents_are_chosen_as_often_as_their_rule_says(choice, population, expected) -> None:
    selector = parent_selector(choice, population, random.Random(0))
    state, draws = _gepa_state(POOL), 4000
    counts = Counter(selector.select_candidate_idx(state) for _ in range(draws))
    assert set(counts) == set(expected)
    for parent, share in expected.items():
        assert counts[parent] / draws == pytest.approx(share, abs=0.03)


def test_the_pair_that_solves_most_together_the_better_one_first() -> None:
    pool = pool_of([0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1])
    _, one, two, _ = pool.prompts
    assert pair_to_merge(pool) == (two, one)  # four of six
    tried = [frozenset((one.id, two.id))]
    pair = pair_to_merge(pool, tried)
    assert pair is not None and pair[0] == two and pair[1] in (pool.prompts[0], pool.prompts[3])


@pytest.mark.parametrize("scores", [[[0.5, 0.5]], [[0, 0], [1, 1]], [[1, 0.5], [1, 1], [0, 1]]])
def test_where_one_is_best_on_all_nothing_is_merged(scores) -> None:
    assert pair_to_merge(pool_of(*scores)) is None


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=5, max_size=5), min_size=1))
def test_no_other_pair_is_better(scores) -> None:
    pool = pool_of(*scores)
    pair = pair_to_merge(pool)
    frontier = pool.frontier()

    def together(*prompts: Prompt) -> float:
        return sum(max(prompt.scores[problem] for prompt in prompts) for problem in "abcde")

    best = max(
        (together(p, q) for p in frontier for q in frontier if together(p, q) > together(p)),
        default=0.0,
    )
    if pair is None:
        assert len(frontier) < 2
    else:
        assert together(*pair) == best and pair[0].mean_score >= pair[1].mean_score
        assert together(*pair) > max(together(prompt) for prompt in pair)


@given(st.lists(st.sampled_from([0.0, 1 / 3, 2 / 3, 1.0]), min_size=8), st.randoms())
def test_the_same_scores_in_another_order_are_no_gain(scores, rng) -> None:
    child = CandidateProposal({}, [0], subsample_scores_before=list(scores))
    rng.shuffle(scores)
    child.subsample_scores_after = scores
    assert gain(child) == 0.0
