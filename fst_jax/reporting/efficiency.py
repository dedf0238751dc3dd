"""How much sooner: rollouts until FST reaches RL's peak, and until an arm first leaves zero.

The paper's figure takes the first evaluation at which FST's running maximum reaches RL's running
peak.  Beside it stands what the peak of a noisy curve hides: every rollout is counted in a second
ratio, RL's gain in the last quarter of its run is given, and a robust ratio takes the rollouts at
which both arms first reach 90 % and 95 % of RL's plateau, the mean over seeds of that quarter.

A seed in which FST never reaches the peak is censored: the true ratio is below what RL needed over
FST's budget, and this bound, or 1 where it is above 1, enters the mean; where every seed is
censored there is no ratio.  A seed in
which RL misses a robust level counts with RL's budget, a lower bound.  Both are counted.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from fst_jax.reporting.runs import Evaluation, Run
from fst_jax.reporting.select import chosen, pairs
from fst_jax.reporting.statistics import (
    Estimate,
    first_at,
    mean_interval,
    median_interval,
    ratio_interval,
    rounded,
    running_max,
    smoothed,
)

SIGNAL = 0.05  # above the base: the first signal
Count = Callable[[Evaluation], float]


def rl_rollouts(event: Evaluation) -> float:
    """Rollouts that the weights were trained on."""
    return event.rollouts


def all_rollouts(event: Evaluation) -> float:
    """Rollouts sampled for RL groups and for fast rounds."""
    return event.all_rollouts


def reached(run: Run, level: float, count: Count) -> float:
    """What the run had spent when its running max reached `level`; NaN if it never did."""
    curve = run.curve()
    best = running_max([event.mean_at_k for event in curve])
    return first_at([count(event) for event in curve], best, level)


def peak(run: Run) -> float:
    """The run's best held-out mean@k under its own context."""
    return max(event.mean_at_k for event in run.curve())


def sample_efficiency(runs: Sequence[Run], task: str) -> dict[str, Any] | None:
    """The claim of one task of the main group; None without paired seeds."""
    rl = chosen(runs, "main", task, "rl", "")
    result: dict[str, Any] = {}
    for arm in ("fst", "fst_reuse", "prompt"):
        paired = pairs(rl, chosen(runs, "main", task, arm, ""))
        if not paired:
            continue
        counted = {"ratio_all_rollouts": all_rollouts}
        if arm != "prompt":  # which spends nothing on RL groups
            counted = {"ratio": rl_rollouts} | counted
        found: dict[str, Any] = {"seeds": len(paired)}
        for name, count in counted.items():
            found[name] = _ratio_to_peak(paired, count)
            found |= {
                f"{name}_at_{percent}_percent": _ratio_to_plateau(paired, percent / 100, count)
                for percent in (90, 95)
            }
        result |= found if arm == "fst" else {arm: found}
    if not result:
        return None
    return result | {"rl_flatness": flatness(rl).to_json(), "rl_plateau": rounded(plateau(rl))}


def flatness(rl: Sequence[Run]) -> Estimate:
    """Gain of RL's smoothed curve over the last quarter of the run; about 0 once it is flat."""
    gains = []
    for run in rl:
        curve = run.curve()
        smooth = smoothed([event.mean_at_k for event in curve])
        since = 0.75 * curve[-1].step
        before = next(i for i, event in enumerate(curve) if event.step >= since)
        gains.append(float(smooth[-1] - smooth[before]))
    return mean_interval(gains)


def plateau(rl: Sequence[Run]) -> float:
    """Mean over seeds of mean@k in the last quarter of RL's steps."""
    means = []
    for run in rl:
        curve = run.curve()
        last = [e.mean_at_k for e in curve if e.step >= 0.75 * curve[-1].step]
        means.append(sum(last) / len(last))
    return sum(means) / len(means)


def first_signal(runs: Sequence[Run], group: str, task: str) -> dict[str, Any]:
    """Per arm, when held-out mean@k first exceeds the base by 0.05 and does so the next time."""
    result = {}
    for arm in ("rl", "prompt", "fst", "fst_reuse"):
        of_arm = chosen(runs, group, task, arm, "")
        if not of_arm:
            continue
        first = [signal(run) for run in of_arm]
        result[arm] = {
            "step": _median(median_interval([e.step if e else math.inf for e in first])),
            "all_rollouts": _median(
                median_interval([e.all_rollouts if e else math.inf for e in first])
            ),
            "never": sum(event is None for event in first),
        }
    return result


def signal(run: Run) -> Evaluation | None:
    """The evaluation of the first signal; None if there is none."""
    curve = run.curve()
    base = curve[0].mean_at_k
    above = [event.mean_at_k > base + SIGNAL for event in curve]
    return next(
        (curve[i] for i in range(1, len(curve) - 1) if above[i] and above[i + 1]),
        None,
    )


def _ratio_to_peak(paired: Sequence[tuple[Run, Run]], count: Count) -> dict[str, Any]:
    return _ratios(paired, [peak(rl) for rl, _ in paired], count)


def _ratio_to_plateau(
    paired: Sequence[tuple[Run, Run]], fraction: float, count: Count
) -> dict[str, Any]:
    level = fraction * plateau([rl for rl, _ in paired])
    return _ratios(paired, [level] * len(paired), count) | {"level": rounded(level)}


def _ratios(
    paired: Sequence[tuple[Run, Run]], levels: Sequence[float], count: Count
) -> dict[str, Any]:
    """What RL spent until each seed's level, divided by what the other arm spent."""
    by_seed: dict[int, float] = {}
    omitted = {"censored": 0, "rl_missed": 0, "neither": 0, "rl_never_rose": 0}
    for (rl, other), level in zip(paired, levels, strict=True):
        of_rl, of_other = reached(rl, level, count), reached(other, level, count)
        if of_rl == 0:  # the base is as good: there is nothing to reach
            omitted["rl_never_rose"] += 1
        elif math.isnan(of_rl) and math.isnan(of_other):
            omitted["neither"] += 1
        elif math.isnan(of_other):
            omitted["censored"] += 1
            by_seed[rl.seed] = min(1.0, of_rl / max(count(other.curve()[-1]), 1))
        else:
            if math.isnan(of_rl):
                omitted["rl_missed"] += 1
                of_rl = count(rl.curve()[-1])
            by_seed[rl.seed] = of_rl / max(of_other, 1)
    known = list(by_seed.values()) if omitted["censored"] < len(by_seed) else []
    per_seed = {str(seed): rounded(ratio) for seed, ratio in by_seed.items()}
    return ratio_interval(known).to_json() | {"per_seed": per_seed} | omitted


def _median(estimate: Estimate) -> dict[str, Any]:
    shown = estimate.to_json()
    return {"median": shown.pop("mean"), **shown}
