"""The choices of a fast round: who becomes a parent, who is merged, which children stay.

Parents are chosen by `gepa`'s selectors.  Its merge is not used: it swaps whole
components of candidates, and ours have one.  Which two prompts are merged is
decided here, and a reflector writes the merge.
"""

import random
from collections.abc import Collection, Sequence
from itertools import combinations
from math import fsum
from typing import Any

from gepa.proposer.base import CandidateProposal
from gepa.proposer.reflective_mutation.base import CandidateSelector
from gepa.strategies.candidate_selector import (
    CurrentBestCandidateSelector,
    EpsilonGreedyCandidateSelector,
    ParetoCandidateSelector,
    TopKParetoCandidateSelector,
)

from fst_jax.config import Acceptance, ParentChoice
from fst_jax.fast.pool import Pool, Prompt

EPSILON = 0.1  # chance of any parent at all, as in gepa.optimize


def parent_selector(choice: ParentChoice, population: int, rng: random.Random) -> CandidateSelector:
    """gepa's selector of the parents that `fast.parent` names."""
    if choice == "top_k_pareto":
        return TopKParetoCandidateSelector(population, rng)
    if choice == "best":
        return CurrentBestCandidateSelector()
    if choice == "epsilon_greedy":
        return EpsilonGreedyCandidateSelector(EPSILON, rng)
    return ParetoCandidateSelector(rng)


def pair_to_merge(
    pool: Pool, tried: Collection[frozenset[str]] = ()
) -> tuple[Prompt, Prompt] | None:
    """The two prompts of the frontier that solve most together, the better one first.

    Together they score, on each problem, what the better of them does; the sum
    must be above that of either alone.  Pairs of ids in `tried` are left out.
    None: there is no such pair.
    """
    best: tuple[Prompt, Prompt] | None = None
    most = 0.0
    for pair in combinations(pool.frontier(), 2):
        if frozenset(prompt.id for prompt in pair) in tried:
            continue
        one, other = (prompt.scores for prompt in pair)
        together = sum(max(score, other[problem]) for problem, score in one.items())
        alone = max(sum(one.values()), sum(other.values()))
        if together > max(alone, most):
            first, second = sorted(pair, key=lambda prompt: -prompt.mean_score)
            best, most = (first, second), together
    return best


def accepted(
    children: Sequence[CandidateProposal[Any]], rule: Acceptance
) -> list[CandidateProposal[Any]]:
    """The children of a batch that `rule` lets pass, the best first."""
    ranked = sorted(children, key=gain, reverse=True)
    better = [child for child in ranked if gain(child) > 0]
    equal = [child for child in ranked if gain(child) == 0]
    match rule:
        case "strict":
            return better
        case "or_equal":
            return better + equal
        case "lateral":
            return better or equal[:1]
        case "none":
            return ranked


def gain(child: CandidateProposal[Any]) -> float:
    """How much better a child did on the minibatch than its parent."""
    after, before = child.subsample_scores_after or (), child.subsample_scores_before or ()
    return fsum(after) - fsum(before)  # exact, so that equal scores are equal in any order
