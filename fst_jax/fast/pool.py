"""The pool of prompts: the truth about the fast weights Φ.

A prompt's worth is a vector, one score for each anchor problem, and prompts are
compared problem by problem: the *frontier* is a smallest-first pruning of all
prompts to those still needed to reach the best score on every problem, which is
what `gepa` calls removing dominated programs.  A pool is immutable; every
change makes a new one, and the file `pool/<step>.json` holds all of it.

Where the paper is silent: prompts on the frontier rank by coverage (the number
of problems on which they are among the best), then mean score, then age; a
short frontier is filled with the best of the rest by mean; and where there are
fewer prompts than K, the frontier is repeated in rank order, so that Φ is a
multiset of exactly K.  The seed prompt never leaves the pool, as a control, but
is active only where it ranks.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import fsum
from pathlib import Path
from typing import Any

from fst_jax.errors import RunError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Prompt:
    """One φ: its text, where it came from, and its score on each anchor problem."""

    text: str
    parent: str | None = None
    origin: str = "seed"  # or the name of the reflector that wrote it
    created_step: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    partner: str | None = None  # the prompt that its parent was merged with

    @property
    def id(self) -> str:
        """Made from the text alone, so the same text has the same id in every run."""
        return "p" + hashlib.sha256(self.text.encode()).hexdigest()[:10]

    @property
    def mean_score(self) -> float:
        """Mean over the anchors; 0 before the first scoring."""
        return fsum(self.scores.values()) / len(self.scores) if self.scores else 0.0


@dataclass(frozen=True)
class Pool:
    """Prompts in order of age, the seed prompt first, and the ids of the K in use.

    All prompts are scored on the same problems under the same weights, or none
    is scored.  `rounds` counts the fast rounds done; with `rng_seed` it is the
    whole state of the pool's random numbers (see `rng`).
    """

    prompts: tuple[Prompt, ...]
    active: tuple[str, ...]
    step: int = 0
    weight_version: int = 0
    rng_seed: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        ids = [prompt.id for prompt in self.prompts]
        if not ids or self.prompts[0].origin != "seed":
            raise ValueError("the first prompt of a pool is the seed prompt")
        if len(set(ids)) != len(ids):
            raise ValueError("two prompts of the pool have the same text")
        if not self.active or not set(self.active) <= set(ids):
            raise ValueError("the active prompts are not all in the pool")
        if any(p.scores.keys() != self.prompts[0].scores.keys() for p in self.prompts):
            raise ValueError("the prompts of the pool are not scored on the same problems")

    @staticmethod
    def start(seed_prompt: str, population: int, rng_seed: int) -> "Pool":
        """Φ₀: the seed prompt, K times."""
        seed = Prompt(seed_prompt)
        return Pool((seed,), (seed.id,) * population, rng_seed=rng_seed)

    @property
    def seed(self) -> Prompt:
        """The seed prompt, φ_seed."""
        return self.prompts[0]

    @property
    def active_prompts(self) -> tuple[Prompt, ...]:
        """The K prompts in use; each serves G/K rollouts of every problem."""
        by_id = {prompt.id: prompt for prompt in self.prompts}
        return tuple(by_id[id] for id in self.active)

    @property
    def carried(self) -> tuple[Prompt, ...]:
        """What the next fast round starts from: the seed prompt and the active ones."""
        keep = {self.seed.id, *self.active}
        return tuple(prompt for prompt in self.prompts if prompt.id in keep)

    def coverage(self) -> dict[str, int]:
        """For each prompt id, the number of problems on which it is among the best."""
        fronts = self._fronts().values()
        return {p.id: sum(i in front for front in fronts) for i, p in enumerate(self.prompts)}

    def frontier(self) -> tuple[Prompt, ...]:
        """The undominated prompts, best first; empty before the first scoring.

        From the lowest mean score upwards (the younger first among equals), a
        prompt is dropped when each problem on which it is among the best has
        another one left.
        """
        fronts = self._fronts()
        worst_first = sorted(
            range(len(self.prompts)), key=lambda i: (self.prompts[i].mean_score, -i)
        )
        for i in worst_first:
            mine = [front for front in fronts.values() if i in front]
            if all(len(front) > 1 for front in mine):
                for front in mine:
                    front.remove(i)
        left = set().union(*fronts.values()) if fronts else set()
        coverage = self.coverage()
        return tuple(
            sorted(
                (self.prompts[i] for i in sorted(left)),
                key=lambda prompt: (-coverage[prompt.id], -prompt.mean_score),
            )
        )

    def top(self, k: int) -> tuple[Prompt, ...]:
        """The best k prompts: the frontier in rank order, then the rest by mean score."""
        frontier = self.frontier()
        rest = sorted(
            (prompt for prompt in self.prompts if prompt not in frontier),
            key=lambda prompt: -prompt.mean_score,
        )
        return (*frontier, *rest)[:k]

    def rescored(self, scores: Mapping[str, Mapping[str, float]], weight_version: int) -> "Pool":
        """The carried prompts with new scores alone; old scores and all else are gone."""
        prompts = tuple(replace(p, scores=dict(scores[p.id])) for p in self.carried)
        return replace(self, prompts=prompts, weight_version=weight_version)

    def with_prompts(self, prompts: Iterable[Prompt]) -> "Pool":
        """The pool and `prompts`, scored on the same problems."""
        return replace(self, prompts=(*self.prompts, *prompts))

    def settled(self, population: int, step: int) -> "Pool":
        """The end of a round: choose the active K, and prune what is dominated and unused."""
        frontier, top = self.frontier(), self.top(population)
        repeat = frontier or (self.seed,)
        repeats = (repeat[i % len(repeat)].id for i in range(population - len(top)))
        active = (*(prompt.id for prompt in top), *repeats)
        keep = {self.seed.id, *active, *(prompt.id for prompt in frontier)}
        prompts = tuple(prompt for prompt in self.prompts if prompt.id in keep)
        return replace(self, prompts=prompts, active=active, step=step, rounds=self.rounds + 1)

    def rng(self) -> random.Random:
        """The random numbers of the next round: a function of `rng_seed` and `rounds`."""
        return random.Random(f"pool {self.rng_seed} round {self.rounds}")

    def restarted(self, seed_prompt: str) -> "Pool":
        """The seed prompt alone again, K times; rounds are counted on."""
        fresh = Pool.start(seed_prompt, len(self.active), self.rng_seed)
        return replace(fresh, step=self.step, rounds=self.rounds)

    def to_json(self) -> dict[str, Any]:
        """The pool file as plain data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "step": self.step,
            "weight_version": self.weight_version,
            "prompts": [
                {
                    "id": prompt.id,
                    "text": prompt.text,
                    "parent": prompt.parent,
                    **({"partner": prompt.partner} if prompt.partner else {}),
                    "origin": prompt.origin,
                    "scores": dict(prompt.scores),
                    "created_step": prompt.created_step,
                }
                for prompt in self.prompts
            ],
            "frontier": [prompt.id for prompt in self.frontier()],
            "active": list(self.active),
            "rng": {"seed": self.rng_seed, "rounds": self.rounds},
        }

    @staticmethod
    def from_json(data: Any, source: str = "the pool") -> "Pool":
        """Inverse of `to_json`; raises RunError, naming `source`, for anything else."""
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            found = data.get("schema_version") if isinstance(data, dict) else None
            raise RunError(
                f"{source} has schema_version {found!r}, and this version of fst_jax reads "
                f"{SCHEMA_VERSION}: it was written by another version or is not a pool file"
            )
        try:
            pool = Pool(
                prompts=tuple(_prompt(entry) for entry in data["prompts"]),
                active=tuple(data["active"]),
                step=int(data["step"]),
                weight_version=int(data["weight_version"]),
                rng_seed=int(data["rng"]["seed"]),
                rounds=int(data["rng"]["rounds"]),
            )
        except KeyError as error:
            raise RunError(f"{source} is damaged: {error} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{source} is damaged: {error}") from error
        return pool

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pool file; a crash at any moment leaves the old file or the new one."""
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(self.to_json(), file, ensure_ascii=False, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise RunError(f"cannot write the pool file {target}: {error.strerror}") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Pool":
        """Read a pool file."""
        source = f"the pool file {path}"
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"cannot read {source}: {error.strerror}") from error
        except ValueError as error:
            raise RunError(f"{source} is damaged: it is not JSON ({error})") from error
        return Pool.from_json(data, source)

    def _fronts(self) -> dict[str, set[int]]:
        """For each problem, the indices of the prompts with the best score."""
        fronts = {}
        for problem in self.seed.scores:
            best = max(prompt.scores[problem] for prompt in self.prompts)
            fronts[problem] = {
                i for i, prompt in enumerate(self.prompts) if prompt.scores[problem] == best
            }
        return fronts


def _prompt(entry: Mapping[str, Any]) -> Prompt:
    prompt = Prompt(
        text=entry["text"],
        parent=entry["parent"],
        partner=entry.get("partner"),
        origin=entry["origin"],
        created_step=int(entry["created_step"]),
        scores={problem: float(score) for problem, score in entry["scores"].items()},
    )
    if not all(0 <= score <= 1 for score in prompt.scores.values()):
        raise ValueError(f"prompt {entry['id']} has a score outside [0, 1]")
    if prompt.id != entry["id"]:
        raise ValueError(f"prompt {entry['id']} has a text that is not its own")
    return prompt
