"""The rollouts of the fast round under way, kept with the run: none is sampled twice.

A round is long, and its result follows from its step's state, its rollouts and the replies of its
reflector.  A round that was killed starts again from the step's checkpoint and asks for the same
batches in the same order; those that were sampled before are found here, with their scores, so that
it comes to where it was at once, and to the same pool even where a served model would answer
otherwise the second time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fst_jax.kept_lines import KeptLines
from fst_jax.rollout.plain import from_plain, to_plain
from fst_jax.rollout.rollouts import Rollout
from fst_jax.tasks.task import Problem

Pairs = Sequence[tuple[Problem, str]]  # of problem and prompt


class RoundLog:
    """The batches of one round at a time, in their order."""

    def __init__(self, path: Path | None):
        """Keep them in `path`; with None nothing is kept."""
        self._lines = KeptLines(path)
        self._step = self._batches = 0  # of the round, and how many it has asked for
        self._known: dict[str, list[Rollout]] = {}

    def begin(self, step: int) -> None:
        """Begin the round of a step, or begin it again; what is kept of others goes.

        Raises:
          RunError: the file cannot be used.
        """
        self._step, self._batches, self._known = step, 0, {}
        for entry in self._lines.read():
            try:
                if entry["step"] == step:
                    self._known[entry["batch"]] = [from_plain(each) for each in entry["rollouts"]]
            except (KeyError, TypeError, ValueError):
                continue  # nothing of ours
        if not self._known:
            self._lines.clear()

    def next(self, pairs: Pairs) -> list[Rollout] | None:
        """What the next batch gave, one rollout for each pair, or None if it is yet to be sampled.

        `add` is then to follow.
        """
        known = self._known.get(self._key(pairs))
        if known is None or len(known) != len(pairs):
            return None
        self._batches += 1
        return [replace(each, problem=of) for each, (of, _) in zip(known, pairs, strict=True)]

    def add(self, pairs: Pairs, rollouts: Sequence[Rollout]) -> None:
        """Keep the next batch; it is on disk when this returns.

        Raises:
          RunError: the file cannot be written.
        """
        plain = [to_plain(rollout) for rollout in rollouts]
        self._lines.add({"step": self._step, "batch": self._key(pairs), "rollouts": plain})
        self._batches += 1

    def _key(self, pairs: Pairs) -> str:
        """Of a batch: its number, and what it asks."""
        told = repr([(problem.id, prompt) for problem, prompt in pairs])
        return f"{self._batches}:{hashlib.sha256(told.encode()).hexdigest()[:32]}"
