"""Rollout reuse: what a fast round sampled on its anchors serves the RL groups first.

A prompt is scored on an anchor by a rollout of the very kind that an RL group
needs of that problem under that prompt, so the group claims it and samples the
rest (the paper's appendix F).  Claimable are the anchor scorings of the prompts
in use.  They were sampled at most T − 1 steps ago, since the next round clears
what is left, or fewer where `fast.reuse_staleness` says so; their recorded
log-probabilities keep the importance ratio true.  Minibatches of proposals are
left out: a child is in use because it was lucky on them.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fst_jax.fast.pool import Pool
from fst_jax.rollout.plain import from_plain, to_plain
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem


class Leftovers:
    """Rollouts of the newest fast round that no RL group has claimed yet."""

    def __init__(self, rollouts: Iterable[Rollout] = ()):
        self._held: dict[tuple[str, str], list[Rollout]] = {}  # by problem id and prompt
        for rollout in rollouts:
            self._held.setdefault((rollout.problem.id, rollout.prompt), []).append(rollout)

    @staticmethod
    def of_round(rollouts: Iterable[Rollout], pool: Pool) -> "Leftovers":
        """Of a round's anchor rollouts, those under the prompts that it put in use."""
        used = {prompt.text for prompt in pool.active_prompts}
        return Leftovers(rollout for rollout in rollouts if rollout.prompt in used)

    def copy(self) -> "Leftovers":
        """The same rollouts, to be claimed apart."""
        return Leftovers(rollout for held in self._held.values() for rollout in held)

    def claim(self, problem: Problem, prompt: str, most: int, since: int = 0) -> list[Rollout]:
        """Take away up to `most` rollouts of a problem under a prompt, the oldest first.

        Those of weights older than the version `since` are dropped.
        """
        held = self._held.get((problem.id, prompt), [])
        held[:] = [rollout for rollout in held if rollout.completion.weight_version >= since]
        claimed, held[:most] = held[:most], []
        return [replace(rollout, problem=problem) for rollout in claimed]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data; a problem's own `data` is left out, since nothing is scored again."""
        return [to_plain(rollout) for held in self._held.values() for rollout in held]

    @staticmethod
    def from_json(entries: Iterable[dict[str, Any]]) -> "Leftovers":
        """Inverse of `to_json`."""
        return Leftovers(from_plain(entry) for entry in entries)
