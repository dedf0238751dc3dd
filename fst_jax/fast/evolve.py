"""One light round of reflective prompt evolution (GEPA) under the current weights.

The carried prompts are scored anew on the anchors.  Then, while the budget of
rollouts lasts: parents are drawn from the per-instance Pareto frontier, each
runs a minibatch of anchors, the reflector proposes one incremental edit of it,
and a child that does better on the minibatch is scored on all anchors and joins
the pool.  The best K of the pool are the new Φ.  The proposer, the state and the
selection of parents are `gepa`'s; budget, acceptance and the pool are ours,
since `gepa.optimize` starts from one prompt and keeps stale scores.

Where the paper is silent: re-scoring what is carried is counted apart from the
budget.  Parent and child run the minibatch with fresh samples, which are not
used again, so that anchor scores are free of the luck that got a child
accepted.  Where no child of a batch beats its parent, one as good as its parent
is accepted: with a strict gate nothing moves while every score is 0, and with
all equal children the budget goes into scoring them.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gepa.core.state import GEPAState, ValsetEvaluation, initialize_gepa_state
from gepa.proposer.base import CandidateProposal
from gepa.proposer.reflective_mutation.reflective_mutation import ReflectiveMutationProposer
from gepa.strategies.candidate_selector import ParetoCandidateSelector
from gepa.strategies.component_selector import AllReflectionComponentSelector
from gepa.strategies.proposal_sampling import IndependentSampling

from fst_jax.config import FastSettings
from fst_jax.errors import ConfigError
from fst_jax.fast.bridge import PROMPT, Edits, Minibatches, RollOut, Rollouts, Silence
from fst_jax.fast.pool import Pool, Prompt
from fst_jax.fast.reflect import Reflector
from fst_jax.fast.validate import TrainingText, Validator, normalised
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem

IDLE_BATCHES = 4  # batches of proposals in a row without a valid one that end a round


@dataclass(frozen=True)
class EvolveReport:
    """What a round did and what it cost; the `evolve` event of metrics.jsonl."""

    proposals: int
    accepted: int
    rejected_by_reason: dict[str, int]
    pool: list[dict[str, Any]]  # id, parent, coverage, mean_score, tokens
    metric_calls: int  # rollouts of minibatches and of children's anchor scoring
    carried_rescored: int  # rollouts of re-scoring the carried prompts, not in metric_calls
    reflection_calls: int
    reflection_prompt_tokens: int
    reflection_completion_tokens: int
    rollouts: list[Rollout]  # anchor scoring of the pool's prompts, for reuse in RL groups


def smallest_budget(anchors: int, minibatch: int) -> int:
    """Rollouts of one accepted proposal: parent and child on a minibatch, child on anchors."""
    return 2 * min(minibatch, anchors) + anchors


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
      ConfigError: the budget cannot pay a single proposal, or the seed prompt is too long.
      ReflectionError: the reflector failed on a whole batch before any edit was valid; if it
        fails on a whole batch later, the round ends with what it has.
    """
    anchors = list({problem.id: problem for problem in anchors}.values())
    needed = smallest_budget(len(anchors), settings.minibatch)
    if not anchors or settings.metric_calls < needed:
        raise ConfigError(
            f"fast.metric_calls = {settings.metric_calls} cannot pay one proposal, which takes "
            f"{needed} rollouts (two minibatches and {len(anchors)} anchors): raise it, or lower "
            "fast.anchors"
        )
    length = validator.count_tokens(pool.seed.text)
    if length > validator.max_tokens:
        raise ConfigError(
            f"the seed prompt takes {length} tokens, more than fast.max_prompt_tokens = "
            f"{validator.max_tokens}: no edit of it could stand; raise it or shorten the prompt"
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
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self.kept: dict[str, list[Rollout]] = {}  # anchor rollouts by prompt id

    def run(self) -> tuple[Pool, EvolveReport]:
        """Re-score, propose while the budget lasts, choose the active K."""
        rng = self.pool.rng()
        self._rescore_carried()
        rescored = self.rollouts.sampled
        state = _gepa_state(self.pool)
        edits = Edits(
            self.reflector,
            self.validator,
            TrainingText(self.anchors),
            {normalised(prompt.text) for prompt in self.pool.prompts},
            rng,
        )
        proposer = self._proposer(edits, rng)
        idle = 0
        while idle < IDLE_BATCHES:
            left = self.settings.metric_calls - (self.rollouts.sampled - rescored)
            payable = (left - len(self.anchors)) // (2 * self.minibatch)
            if payable < 1:
                break
            proposer.sampling_strategy = IndependentSampling(min(self.settings.proposals, payable))
            state.i += 1
            state.full_program_trace.append({"i": state.i})
            children = proposer.propose(state)
            if edits.raised is not None:
                raise edits.raised
            if edits.batch_errors:
                if edits.valid == 0:
                    raise edits.batch_errors[0]
                break
            idle = 0 if children else idle + 1
            left = self.settings.metric_calls - (self.rollouts.sampled - rescored)
            self._adopt(self._accepted(children), left, state)
        metric_calls = self.rollouts.sampled - rescored
        pool = self.pool.settled(self.settings.population, self.step)
        return pool, self._report(pool, edits, metric_calls, rescored)

    def _proposer(self, edits: Edits, rng: random.Random) -> Any:
        return ReflectiveMutationProposer(
            logger=Silence(),
            trainset=self.anchors,
            adapter=self.rollouts,
            candidate_selector=ParetoCandidateSelector(rng),
            module_selector=AllReflectionComponentSelector(),
            batch_sampler=Minibatches(self.minibatch, rng),
            perfect_score=None,
            skip_perfect_score=False,
            experiment_tracker=Silence(),
            reflection_strategy=edits,
        )

    def _rescore_carried(self) -> None:
        carried = self.pool.carried
        scores = self._anchor_scores([prompt.text for prompt in carried])
        self.pool = self.pool.rescored(
            {prompt.id: scored for prompt, scored in zip(carried, scores, strict=True)},
            self.weight_version,
        )

    def _accepted(
        self, children: Sequence[CandidateProposal[Any]]
    ) -> Sequence[CandidateProposal[Any]]:
        """The children that beat their parents, the best first; if none does, one as good."""
        better = sorted((c for c in children if _gain(c) > 0), key=_gain, reverse=True)
        equal = [child for child in children if _gain(child) == 0]
        accepted = better or equal[:1]
        worse = len(children) - len(better) - len(equal)
        self.rejected["worse on its minibatch"] += worse
        self.rejected["no better on its minibatch"] += len(children) - worse - len(accepted)
        return accepted

    def _adopt(
        self, children: Sequence[CandidateProposal[Any]], left: int, state: GEPAState[Any, Any]
    ) -> None:
        """Score on the anchors as many children as can be paid, and add them to the pool."""
        payable = left // len(self.anchors)
        self.rejected["over budget"] += max(0, len(children) - payable)
        children = children[:payable]
        if not children:
            return
        parents = [state.program_candidates[child.parent_program_ids[0]] for child in children]
        scores = self._anchor_scores([child.candidate[PROMPT] for child in children])
        adopted = []
        for child, parent, scored in zip(children, parents, scores, strict=True):
            text = child.candidate[PROMPT]
            origin, created = self.reflector.name, self.step
            adopted.append(Prompt(text, Prompt(parent[PROMPT]).id, origin, created, scored))
            state.update_state_with_new_program(
                child.parent_program_ids,
                child.candidate,
                ValsetEvaluation({}, scored),
                None,
                self.rollouts.sampled,
            )
        self.pool = self.pool.with_prompts(adopted)
        self.accepted += len(adopted)

    def _anchor_scores(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """The reward on every anchor under each text, from one batch; rollouts are kept."""
        rollouts = self.rollouts.sample(
            [(problem, text) for text in texts for problem in self.anchors]
        )
        scores = []
        for i, text in enumerate(texts):
            own = rollouts[i * len(self.anchors) : (i + 1) * len(self.anchors)]
            self.kept[Prompt(text).id] = own
            rewards = [float(rollout.score.reward) for rollout in own]
            scores.append(dict(zip((p.id for p in self.anchors), rewards, strict=True)))
        return scores

    def _report(self, pool: Pool, edits: Edits, metric_calls: int, rescored: int) -> EvolveReport:
        coverage = pool.coverage()
        rejected = edits.refused + self.rejected
        return EvolveReport(
            proposals=len(edits.proposals),
            accepted=self.accepted,
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
            metric_calls=metric_calls,
            carried_rescored=rescored,
            reflection_calls=sum(p.calls for p in edits.proposals),
            reflection_prompt_tokens=sum(p.prompt_tokens for p in edits.proposals),
            reflection_completion_tokens=sum(p.completion_tokens for p in edits.proposals),
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


def _gain(child: CandidateProposal[Any]) -> float:
    """How much better a child did on the minibatch than its parent."""
    return sum(child.subsample_scores_after or ()) - sum(child.subsample_scores_before or ())
