"""Drift: exact token-level KL(π_θ ‖ π_base) of FST and RL at the same held-out reward.

The paper compares checkpoints of similar accuracy by eye.  Here both arms of a seed are compared
where the running maximum of their reward first reaches a level that both reach, by linear
interpolation between evaluations.  Own context: each arm under the context it learns with.  Seed
prompt: the same checkpoints of FST, their KL measured under the seed prompt that RL uses.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from fst_jax.reporting.efficiency import peak
from fst_jax.reporting.runs import Run
from fst_jax.reporting.select import chosen, pairs
from fst_jax.reporting.statistics import at_crossing, mean_interval

LEVELS: dict[str, Callable[[Run, Run], float]] = {
    "highest common": lambda rl, fst: min(peak(rl), peak(fst)),
    "90 % of RL's peak": lambda rl, fst: 0.9 * peak(rl),
    "70 % of RL's peak": lambda rl, fst: 0.7 * peak(rl),
    "50 % of RL's peak": lambda rl, fst: 0.5 * peak(rl),
}


def kl_at_matched_reward(runs: Sequence[Run], task: str) -> dict[str, Any] | None:
    """The claim of one task of the main group, at the highest common level; None without pairs."""
    paired = pairs(chosen(runs, "main", task, "rl", ""), chosen(runs, "main", task, "fst", ""))
    if not paired:
        return None
    levels = {name: _at(paired, level) for name, level in LEVELS.items()}
    headline = levels["highest common"]
    return {
        "reduction": headline["own"]["reduction"],
        "context": "own",
        "seed_prompt": {"reduction": headline["seed"]["reduction"], "context": "seed"},
        "levels": levels,
    }


def kl_at(run: Run, level: float, context: str) -> float:
    """KL under `context` where the run's own reward first reaches `level`; NaN if it does not."""
    rewards = {event.step: event.mean_at_k for event in run.curve()}
    drifts = {event.step: event.kl_to_base for event in run.curve(context)}
    steps = [step for step in rewards if step in drifts]
    return at_crossing([rewards[s] for s in steps], [drifts[s] for s in steps], level)


def _at(paired: Sequence[tuple[Run, Run]], level: Callable[[Run, Run], float]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "reward": mean_interval([level(rl, fst) for rl, fst in paired]).to_json()
    }
    for context in ("own", "seed"):
        of_rl, of_fst, reductions = [], [], []
        for rl, fst in paired:
            at = level(rl, fst)
            one = kl_at(rl, at, "seed")
            other = kl_at(fst, at, fst.own_context if context == "own" else "seed")
            if one > 0 and not math.isnan(other):
                of_rl.append(one)
                of_fst.append(other)
                reductions.append(1 - other / one)
        found[context] = {
            "kl_rl": mean_interval(of_rl).to_json(),
            "kl_fst": mean_interval(of_fst).to_json(),
            "reduction": mean_interval(reductions).to_json(),
        }
    return found
