"""What `gepa`'s proposer needs from us: rollouts in one batch, edits in one batch.

`gepa` calls prompts candidates, {component: text}; ours have one component.  It
catches what a reflector raises and tries again, which would hide a broken
reflector and spend the budget, so nothing is raised through it: an exception is
kept here and raised by `evolve` afterwards.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gepa.core.adapter import EvaluationBatch, GEPAAdapter
from gepa.core.state import GEPAState
from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal
from gepa.strategies.proposal_sampling import IndependentSampling, ProposalTask

from fst_jax.fast.pool import Prompt
from fst_jax.fast.reflect import Job, Proposal, Reflector
from fst_jax.fast.validate import TrainingText, Validator, normalised
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem

RollOut = Callable[[Sequence[tuple[Problem, str]]], list[Rollout]]
"""Samples one rollout for each (problem, prompt text), all in one engine batch."""

PROMPT = "prompt"  # the only component of a candidate


class Rollouts(GEPAAdapter[Problem, Rollout, Rollout]):
    """gepa's adapter: candidates to scores.  Counts every rollout asked for."""

    propose_new_texts = None

    def __init__(self, roll_out: RollOut):
        self._roll_out = roll_out
        self.sampled = 0

    def sample(self, pairs: Sequence[tuple[Problem, str]]) -> list[Rollout]:
        """One rollout for each pair, in one batch."""
        rollouts = self._roll_out(pairs)
        if len(rollouts) != len(pairs):
            raise ValueError(f"asked for {len(pairs)} rollouts, got {len(rollouts)}")
        self.sampled += len(rollouts)
        return rollouts

    def batch_evaluate(
        self, items: Sequence[tuple[Mapping[str, str], Sequence[Problem]]]
    ) -> list[EvaluationBatch[Rollout, Rollout]]:
        """Score several (candidate, minibatch) items with one batch of rollouts."""
        pairs = [(problem, candidate[PROMPT]) for candidate, batch in items for problem in batch]
        rollouts = iter(self.sample(pairs))
        results = []
        for _, batch in items:
            own = [next(rollouts) for _ in batch]
            rewards = [rollout.score.reward for rollout in own]
            results.append(EvaluationBatch(outputs=own, scores=rewards, trajectories=own))
        return results

    def evaluate(
        self, batch: Sequence[Problem], candidate: Mapping[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Rollout, Rollout]:
        """One item of `batch_evaluate`."""
        return self.batch_evaluate([(candidate, batch)])[0]

    def make_reflective_dataset(
        self,
        candidate: Mapping[str, str],
        eval_batch: EvaluationBatch[Rollout, Rollout],
        components_to_update: Sequence[str],
    ) -> dict[str, list[dict[str, Rollout]]]:
        """The rollouts as they are; what to show of them is the reflector's choice."""
        return {PROMPT: [{"rollout": rollout} for rollout in eval_batch.trajectories or ()]}


@dataclass(frozen=True)
class Merge:
    """A job that merges two prompts of the pool."""

    parent: int  # place in the pool, of the better one
    partner: Prompt
    rollouts: Mapping[str, Sequence[Rollout]]  # of the partner, by problem id


class Tasks:
    """gepa's sampling strategy: parents with minibatches of their own, then at most one merge."""

    def __init__(self) -> None:
        self.count = 0  # of the next batch, the merge included
        self.merge: Merge | None = None

    def sample_tasks(
        self,
        state: GEPAState[Any, Any],
        candidate_selector: Any,
        batch_sampler: Any,
        trainset: Any,
    ) -> list[ProposalTask[Any, Any]]:
        """The tasks of the next batch."""
        edits = IndependentSampling(self.count - (self.merge is not None))
        tasks = edits.sample_tasks(state, candidate_selector, batch_sampler, trainset)
        if self.merge is not None:
            parent, ids = self.merge.parent, batch_sampler.next_minibatch_ids(trainset, state)
            candidate = state.program_candidates[parent]
            tasks.append(ProposalTask(parent, candidate, ids, trainset.fetch(ids)))
        return tasks


class Edits:
    """gepa's reflection strategy: our reflector, then our validation, with counts."""

    def __init__(
        self,
        reflector: Reflector,
        validator: Validator,
        training: TrainingText,
        known: set[str],
        rng: random.Random,
        tasks: Tasks,
    ):
        """`known` holds the normalised texts of the pool; every valid edit is added to it."""
        self._reflector = reflector
        self._validator = validator
        self._training = training
        self._known = known
        self._rng = rng
        self._tasks = tasks
        self.proposals: list[Proposal] = []  # all so far
        self.merges = 0  # among them
        self.partners: dict[str, str] = {}  # the partner's id by a merge's text
        self.refused: Counter[str] = Counter()
        self.unanswered: list[Proposal] = []  # all of the last batch, if none had an answer
        self.raised: Exception | None = None

    def reflect_many(self, jobs: Sequence[tuple[Any, Any, Any]]) -> list[tuple[Any, "Edits"]]:
        """A proposal for each of gepa's jobs; refused ones change nothing."""
        ours = [
            Job(candidate[PROMPT], [record["rollout"] for record in dataset[PROMPT]])
            for candidate, dataset, _ in jobs
        ]
        if merge := self._tasks.merge:
            self.merges += 1
            ours[-1] = _with_partner(ours[-1], merge)
        texts: list[str | None] = [None] * len(ours)
        try:
            proposals = self._reflector.propose(ours, self._rng)
            texts = [self._checked(j, p) for j, p in zip(ours, proposals, strict=True)]
            self.unanswered = list(proposals) if all(p.error for p in proposals) else []
            if merge and texts[-1] is not None:
                self.partners[texts[-1]] = merge.partner.id
        except Exception as error:  # raised again by evolve, see the module's docstring
            self.raised = error
            texts = [None] * len(ours)
        return [
            (ReflectionProposal(new_texts={} if text is None else {PROMPT: text}), self)
            for text in texts
        ]

    def reflect(self, candidate: Any, dataset: Any, components: Any) -> tuple[Any, "Edits"]:
        """One job of `reflect_many`."""
        return self.reflect_many([(candidate, dataset, components)])[0]

    def _checked(self, job: Job, proposal: Proposal) -> str | None:
        self.proposals.append(proposal)
        parents = [job.parent] if job.partner is None else [job.parent, job.partner]
        reason = proposal.refusal or self._validator.reason(
            proposal.text, parents, self._known, self._training
        )
        if reason is not None:
            self.refused[reason] += 1
            return None
        self._known.add(normalised(proposal.text))
        return proposal.text


def _with_partner(job: Job, merge: Merge) -> Job:
    """The job of a merge; of the partner, the rollouts of the same problems."""
    problems = [rollout.problem.id for rollout in job.rollouts]
    own = [rollout for id in problems for rollout in merge.rollouts[id]]
    return replace(job, partner=merge.partner.text, partner_rollouts=own)


class Minibatches:
    """gepa's batch sampler: the anchors in shuffled order, each once before any again."""

    def __init__(self, size: int, rng: random.Random):
        self._size = size
        self._rng = rng
        self._left: list[Any] = []

    def next_minibatch_ids(self, loader: Any, state: GEPAState[Any, Any]) -> list[Any]:
        """The next `size` anchors; the rest of a pass that is too short is skipped."""
        if len(self._left) < self._size:
            self._left = list(loader.all_ids())
            self._rng.shuffle(self._left)
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return batch


class Silence:
    """gepa's logger and experiment tracker, saying and writing nothing."""

    def log(self, message: str) -> None:
        """Nothing: what matters is in the report."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Nothing: what matters is in the report."""
