"""One round of reflective prompt evolution (GEPA) under the current weights.

The carried prompts are scored anew on the anchors.  Then, while the budget of
rollouts lasts: parents are drawn from the per-instance Pareto frontier, each
runs a minibatch of anchors, the reflector proposes one incremental edit of it,
and a child that does better on the minibatch is scored on all anchors and joins
the pool.  The best K of the pool are the new Φ.  The proposer, the state and the
selection of parents are `gepa`'s; budget, acceptance and the pool are ours,
since `gepa.optimize` starts from one prompt and keeps stale scores.  Other ways
to choose parents and children, merges and rewrites are settings.

Where the paper is silent: re-scoring what is carried is counted apart from the
budget.  Parent and child run the minibatch with fresh samples, which are not
used again, so that anchor scores are free of the luck that got a child
accepted.  Where no child of a batch beats its parent, one as good as its parent
is accepted: with a strict gate nothing moves while every score is 0, and with
all equal children the budget goes into scoring them.  A merge is a child of the
better of its two prompts, and costs and passes what any child does.
"""

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gepa.core.state import GEPAState, ValsetEvaluation, initialize_gepa_state
from gepa.proposer.base import CandidateProposal
from gepa.proposer.reflective_mutation.reflective_mutation import ReflectiveMutationProposer
from gepa.strategies.component_selector import AllReflectionComponentSelector

from fst_jax.config import FastSettings
from fst_jax.errors import ConfigError
from fst_jax.fast.bridge import (
    PROMPT,
    Edits,
    Merge,
    Minibatches,
    RollOut,
    Rollouts,
    Silence,
    Tasks,
)
from fst_jax.fast.choice import accepted, gain, pair_to_merge, parent_selector
from fst_jax.fast.pool import Pool, Prompt
from fst_jax.fast.reflect import Proposal, Reflector
from fst_jax.fast.validate import TrainingText, Validator, normalised
from fst_jax.parallel.distributed import is_main
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem

IDLE_BATCHES = 4  # batches of proposals in a row without a valid one that end a round

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvolveReport:
    """What a round did and what it cost; the `evolve` event of metrics.jsonl."""

    proposals: int
    accepted: int
    merges: int  # among the proposals
    merges_accepted: int
    rejected_by_reason: dict[str, int]
    pool: list[dict[str, Any]]  # id, parent, coverage, mean_score, tokens
    metric_calls: int  # rollouts of minibatches and of children's anchor scoring
    carried_rescored: int  # rollouts of re-scoring the carried prompts, not in metric_calls
    staleness: float | None  # mean score of the carried prompts now, less that when chosen
    reflection_calls: int
    reflection_prompt_tokens: int
    reflection_completion_tokens: int
    reflection_cost: float | None  # of these tokens, where fast.lm_price_in and _out are set
    rollouts: list[Rollout]  # anchor scoring of the pool's prompts, for reuse in RL groups


def smallest_budget(anchors: int, minibatch: int, anchor_rollouts: int = 1) -> int:
    """Rollouts of one accepted proposal: parent and child on a minibatch, child on anchors."""
    return 2 * min(minibatch, anchors) + anchors * anchor_rollouts


def evolve(
    pool: Pool,
    anchors: Sequence[Problem],
    roll_out: RollOut,
    reflector: Reflector,
    validator: Validator,
    settings: FastSettings,
    step: int,
    weight_version: int,
) -> tuple[Pool, EvolveReport]:
    """Run one round and return the new pool, its active K chosen, with a report.

    The result depends on nothing but the arguments and what `roll_out` and the
    reflector return; exceptions of both end the round and reach the caller.

    Raises:
      ConfigError: the budget cannot pay a single proposal.
      ReflectionError: no job of a batch had an answer, for reasons that only the user can mend.
        Where there are other reasons, the round ends with the prompts that it has.
    """
    anchors = list({problem.id: problem for problem in anchors}.values())
    needed = smallest_budget(len(anchors), settings.minibatch, settings.anchor_rollouts)
    minibatch = min(settings.minibatch, len(anchors))
    if not anchors or settings.metric_calls < needed:
        raise ConfigError(
            f"fast.metric_calls = {settings.metric_calls} cannot pay one proposal, which takes "
            f"{needed} rollouts (two minibatches and {needed - 2 * minibatch} on the anchors): "
            "raise it, or lower fast.anchors"
        )
    return _Round(
        pool, anchors, roll_out, reflector, validator, settings, step, weight_version
    ).run()


class _Round:
    """The moving parts of one round."""

    def __init__(
        self,
        pool: Pool,
        anchors: list[Problem],
        roll_out: RollOut,
        reflector: Reflector,
        validator: Validator,
        settings: FastSettings,
        step: int,
        weight_version: int,
    ):
        self.pool = pool
        self.anchors = anchors
        self.rollouts = Rollouts(roll_out)
        self.reflector = reflector
        self.validator = validator
        self.settings = settings
        self.step = step
        self.weight_version = weight_version
        self.minibatch = min(settings.minibatch, len(anchors))
        self.prompt_cost = settings.anchor_rollouts * len(anchors)  # rollouts that score one
        self.tasks = Tasks()
        self.merged: set[frozenset[str]] = set()  # pairs of ids, tried in this round
        self.accepted = 0
        self.merges_accepted = 0
        self.rejected: Counter[str] = Counter()
        self.kept: dict[str, list[Rollout]] = {}  # anchor rollouts by prompt id

    def run(self) -> tuple[Pool, EvolveReport]:
        """Re-score, propose while the budget lasts, choose the active K."""
        rng = self.pool.rng()
        staleness = self._rescore_carried()
        rescored = self.rollouts.sampled
        state = _gepa_state(self.pool)
        edits = Edits(
            self.reflector,
            self.validator,
            TrainingText(self.anchors),
            {normalised(prompt.text) for prompt in self.pool.prompts},
            rng,
            self.tasks,
        )
        proposer = self._proposer(edits, rng)
        idle, found_new = 0, True
        while idle < IDLE_BATCHES:
            left = self.settings.metric_calls - (self.rollouts.sampled - rescored)
            payable = (left - self.prompt_cost) // (2 * self.minibatch)
            if payable < 1:
                break
            self.tasks.count = min(self.settings.proposals, payable)
            self.tasks.merge = self._merge() if self.settings.merge and found_new else None
            state.i += 1
            state.full_program_trace.append({"i": state.i})
            children = proposer.propose(state)
            if edits.raised is not None:
                raise edits.raised
            if edits.unanswered:
                _end_or_raise(edits.unanswered)
                break
            idle = 0 if children else idle + 1
            left = self.settings.metric_calls - (self.rollouts.sampled - rescored)
            found_new = self._adopt(self._accepted(children), left, state, edits.partners)
        pool = self.pool.settled(self.settings.population, self.step)
        return pool, self._report(pool, edits, rescored, staleness)

    def _proposer(self, edits: Edits, rng: random.Random) -> Any:
        return ReflectiveMutationProposer(
            logger=Silence(),
            trainset=self.anchors,
            adapter=self.rollouts,
            candidate_selector=parent_selector(self.settings.parent, self.settings.population, rng),
            module_selector=AllReflectionComponentSelector(),
            batch_sampler=Minibatches(self.minibatch, rng),
            perfect_score=None,
            skip_perfect_score=False,
            experiment_tracker=Silence(),
            sampling_strategy=self.tasks,
            reflection_strategy=edits,
        )

    def _rescore_carried(self) -> float | None:
        """Replace the carried prompts' scores; returns by how much they rose, None at first."""
        carried = self.pool.carried
        scores = self._anchor_scores([prompt.text for prompt in carried])
        self.pool = self.pool.rescored(
            {prompt.id: scored for prompt, scored in zip(carried, scores, strict=True)},
            self.weight_version,
        )
        old = {prompt.id: prompt.mean_score for prompt in carried if prompt.scores}
        rises = [p.mean_score - old[p.id] for p in self.pool.prompts if p.id in old]
        return sum(rises) / len(rises) if rises else None

    def _merge(self) -> Merge | None:
        """The next merge: of two prompts of the frontier that was not tried in this round."""
        pair = pair_to_merge(self.pool, self.merged)
        if pair is None:
            return None
        better, partner = pair
        self.merged.add(frozenset((better.id, partner.id)))
        rollouts: dict[str, list[Rollout]] = {}
        for rollout in self.kept[partner.id]:
            rollouts.setdefault(rollout.problem.id, []).append(rollout)
        return Merge(self.pool.prompts.index(better), partner, rollouts)

    def _accepted(
        self, children: Sequence[CandidateProposal[Any]]
    ) -> Sequence[CandidateProposal[Any]]:
        """The children that pass the gate, the best first; the others are counted."""
        passed = accepted(children, self.settings.acceptance)
        gains = Counter(gain(c) < 0 for c in children)
        gains.subtract(gain(c) < 0 for c in passed)
        self.rejected["worse on its minibatch"] += gains[True]
        self.rejected["no better on its minibatch"] += gains[False]
        return passed

    def _adopt(
        self,
        children: Sequence[CandidateProposal[Any]],
        left: int,
        state: GEPAState[Any, Any],
        partners: Mapping[str, str],
    ) -> bool:
        """Add to the pool as many children as can be scored; returns whether there are any."""
        payable = left // self.prompt_cost
        self.rejected["over budget"] += max(0, len(children) - payable)
        children = children[:payable]
        if not children:
            return False
        parents = [state.program_candidates[child.parent_program_ids[0]] for child in children]
        scores = self._anchor_scores([child.candidate[PROMPT] for child in children])
        adopted = []
        for child, parent, scored in zip(children, parents, scores, strict=True):
            text = child.candidate[PROMPT]
            origin, created, partner = self.reflector.name, self.step, partners.get(text)
            parent_id = Prompt(parent[PROMPT]).id
            adopted.append(Prompt(text, parent_id, origin, created, scored, partner))
            self.merges_accepted += partner is not None
            state.update_state_with_new_program(
                child.parent_program_ids,
                child.candidate,
                ValsetEvaluation({}, scored),
                None,
                self.rollouts.sampled,
            )
        self.pool = self.pool.with_prompts(adopted)
        self.accepted += len(adopted)
        return True

    def _anchor_scores(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """The mean reward on every anchor under each text, from one batch; rollouts are kept."""
        each, cost = self.settings.anchor_rollouts, self.prompt_cost
        rollouts = self.rollouts.sample(
            [(problem, text) for text in texts for problem in self.anchors for _ in range(each)]
        )
        scores = []
        for i, text in enumerate(texts):
            own = self.kept[Prompt(text).id] = rollouts[i * cost : (i + 1) * cost]
            rewards = [float(rollout.score.reward) for rollout in own]
            means = [sum(rewards[j : j + each]) / each for j in range(0, cost, each)]
            scores.append(dict(zip((p.id for p in self.anchors), means, strict=True)))
        return scores

    def _report(
        self, pool: Pool, edits: Edits, rescored: int, staleness: float | None
    ) -> EvolveReport:
        coverage = pool.coverage()
        rejected = edits.refused + self.rejected
        asked = sum(p.prompt_tokens for p in edits.proposals)
        answered = sum(p.completion_tokens for p in edits.proposals)
        prices = self.settings.lm_price_in, self.settings.lm_price_out
        return EvolveReport(
            proposals=len(edits.proposals),
            accepted=self.accepted,
            merges=edits.merges,
            merges_accepted=self.merges_accepted,
            rejected_by_reason=dict(sorted(rejected.items())),
            pool=[
                {
                    "id": prompt.id,
                    "parent": prompt.parent,
                    "coverage": coverage[prompt.id],
                    "mean_score": prompt.mean_score,
                    "tokens": self.validator.count_tokens(prompt.text),
                }
                for prompt in pool.prompts
            ],
            metric_calls=self.rollouts.sampled - rescored,
            carried_rescored=rescored,
            staleness=staleness,
            reflection_calls=sum(p.calls for p in edits.proposals),
            reflection_prompt_tokens=asked,
            reflection_completion_tokens=answered,
            reflection_cost=_cost(asked, answered, *prices),
            rollouts=[rollout for prompt in pool.prompts for rollout in self.kept[prompt.id]],
        )


def _gepa_state(pool: Pool) -> GEPAState[Any, Any]:
    """gepa's state of the carried prompts, with their fresh scores."""
    first, *others = pool.prompts
    state: GEPAState[Any, Any] = initialize_gepa_state(
        None, Silence(), {PROMPT: first.text}, ValsetEvaluation({}, dict(first.scores))
    )
    for prompt in others:
        scored: ValsetEvaluation[Any, Any] = ValsetEvaluation({}, dict(prompt.scores))
        state.update_state_with_new_program([], {PROMPT: prompt.text}, scored, None, 0)
    return state


def _end_or_raise(unanswered: Sequence[Proposal]) -> None:
    """What to say of a batch without an answer; raises where only the user can help."""
    errors = [proposal.error for proposal in unanswered if proposal.error is not None]
    if all(proposal.mendable for proposal in unanswered):
        raise errors[0]
    if is_main():
        _log.warning("%s; the fast round ends with the prompts that it has", errors[0])


def _cost(
    asked: int, answered: int, price_in: float | None, price_out: float | None
) -> float | None:
    """The price of so many tokens, or None without prices; these are per million."""
    if price_in is None or price_out is None:
        return None
    return (asked * price_in + answered * price_out) / 1e6
