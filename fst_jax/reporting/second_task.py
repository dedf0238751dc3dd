"""What comes after: plain RL on a second task from each checkpoint, and streams of tasks.

Plasticity runs are named `<task>.rl.from=<origin>+kind=<related|conflicting>.seed<k>` with origin
base, rl@reward, fst@reward, rl@step or fst@step: checkpoints of the first task at equal reward or
after equal steps.  The headline averages every kind and match within a seed, so that no
favourable one is picked; each is listed below it.

A stage of a stream is judged by what an arm gained in it: accuracy at its end (mean of the last
two evaluations) minus accuracy at its start, also on the paper's scale, where 0 is the stage's
start and 100 the best peak that any arm reached in the stage, both of the same seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fst_jax.reporting.runs import Evaluation, Run
from fst_jax.reporting.select import chosen, final
from fst_jax.reporting.statistics import Estimate, area, mean_interval

MATCHES = ("reward", "step")


def kinds(runs: Sequence[Run]) -> list[str]:
    """Kinds of second tasks that have runs: related, conflicting."""
    return sorted({run.variant.get("kind", "") for run in chosen(runs, "plasticity")}, reverse=True)


def from_origin(runs: Sequence[Run], kind: str, origin: str) -> list[Run]:
    """Second-task runs of a kind that started from an origin."""
    return [
        run
        for run in chosen(runs, "plasticity")
        if run.variant.get("kind", "") == kind and run.variant.get("from") == origin
    ]


def plasticity(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Second-task accuracy by origin; None without plasticity runs."""
    by_kind: dict[str, Any] = {}
    everything: list[dict[str, dict[int, float]]] = []
    for kind in kinds(runs):
        for match in MATCHES:
            origins = {"base": "base", "rl": f"rl@{match}", "fst": f"fst@{match}"}
            finals = {
                name: _by_seed(from_origin(runs, kind, origin)) for name, origin in origins.items()
            }
            if finals["rl"] or finals["fst"]:
                by_kind.setdefault(kind, {})[match] = _by_origin(finals)
                everything.append(finals)
    if not everything:
        return None
    averaged = {name: _average([each[name] for each in everything]) for name in everything[0]}
    return _by_origin(averaged) | {"by_kind": by_kind}


@dataclass(frozen=True)
class Stage:
    """One task of a stream, trained from step `start` to step `end`."""

    task: str
    start: int
    end: int


def stages(run: Run) -> list[Stage]:
    """The stages of a stream's run: lengths from its config, tasks in the order of evaluation."""
    tasks = list(dict.fromkeys(event.task for event in run.evaluations))
    lengths = [int(stage["steps"]) for stage in run.config["task"]["options"]["stages"]]
    ends = [*accumulate(lengths[:-1]), run.planned_steps]  # the last stage goes on
    starts = [0, *ends[:-1]]
    return [Stage(*fields) for fields in zip(tasks, starts, ends, strict=True)]


def continual(runs: Sequence[Run]) -> dict[str, Any] | None:
    """What every stage of a stream has brought and what is kept of it, by arm; None without any."""
    streams = [run for run in chosen(runs, "continual") if not run.variant]
    arms = [arm for arm in ("rl", "prompt", "fst", "fst_reuse") if chosen(streams, arm=arm)]
    if not arms:
        return None
    listed = []
    for stage in stages(streams[0]):
        best = _best_peaks(streams, stage)
        measures: dict[str, dict[str, dict[int, float]]] = {}
        for arm in arms:
            for run in chosen(streams, arm=arm):
                for name, value in stage_measures(run, stage, best.get(run.seed)).items():
                    measures.setdefault(name, {}).setdefault(arm, {})[run.seed] = value
        entry: dict[str, Any] = {"task": stage.task, "start": stage.start, "end": stage.end}
        for name, by_arm in measures.items():
            entry[name] = {arm: _estimate(values).to_json() for arm, values in by_arm.items()}
            if "rl" in by_arm and "fst" in by_arm:
                entry[name]["fst_minus_rl"] = _difference(by_arm["fst"], by_arm["rl"]).to_json()
        listed.append(entry)
    result: dict[str, Any] = {"stages": listed}
    if {"rl", "fst"} <= set(arms):
        result["fst_minus_rl"] = _over_stages(streams).to_json()
    return result


def stage_measures(run: Run, stage: Stage, best: float | None) -> dict[str, float]:
    """gain, gain_percent (of `best`, the best peak of any arm), mean, final, kept and kept_seed.

    `mean` is the mean height of the curve during the stage; `kept` is the accuracy on the stage's
    task at the end of the stream minus that at the stage's end, negative when forgotten, under the
    run's own context of the time, and `kept_seed` the same under the seed prompt.
    """
    curve = run.curve(task=stage.task)
    inside = _inside(curve, stage)
    if len(inside) < 2:
        return {}
    start, end = inside[0].mean_at_k, _last_two(inside[1:])
    room = math.nan if best is None else best - start
    return {
        "gain": end - start,
        "gain_percent": 100 * (end - start) / room if room > 0 else math.nan,
        "mean": area([e.step for e in inside], [e.mean_at_k for e in inside]),
        "final": end,
        "kept": _kept(curve, stage),
        "kept_seed": _kept(run.curve("seed", stage.task), stage),
    }


def _kept(curve: Sequence[Evaluation], stage: Stage) -> float:
    """The last accuracy minus that at the stage's end; NaN for the last stage."""
    inside = _inside(curve, stage)[1:]
    if not inside or curve[-1].step <= stage.end:
        return math.nan
    return _last_two(curve) - _last_two(inside)


def _over_stages(streams: Sequence[Run]) -> Estimate:
    """FST minus RL in gain, averaged over the stages of each seed."""
    gains: dict[str, dict[int, float]] = {}
    for arm in ("rl", "fst"):
        for run in chosen(streams, arm=arm):
            each = [stage_measures(run, stage, None).get("gain") for stage in stages(run)]
            known = [gain for gain in each if gain is not None]
            gains.setdefault(arm, {})[run.seed] = sum(known) / len(known) if known else math.nan
    return _difference(gains["fst"], gains["rl"])


def _best_peaks(streams: Sequence[Run], stage: Stage) -> dict[int, float]:
    """By seed, the best accuracy that any arm reached in the stage."""
    best: dict[int, float] = {}
    for run in streams:
        inside = [e.mean_at_k for e in _inside(run.curve(task=stage.task), stage)]
        if inside:
            best[run.seed] = max(best.get(run.seed, 0.0), *inside)
    return best


def _inside(curve: Sequence[Evaluation], stage: Stage) -> list[Evaluation]:
    return [event for event in curve if stage.start <= event.step <= stage.end]


def _last_two(events: Sequence[Evaluation]) -> float:
    last = [event.mean_at_k for event in events[-2:]]
    return sum(last) / len(last)


def _by_seed(runs: Sequence[Run]) -> dict[int, float]:
    """Final accuracy by seed, averaged where a kind has several second tasks."""
    seeds = sorted({run.seed for run in runs})
    finals = {seed: [final(run) for run in runs if run.seed == seed] for seed in seeds}
    return {seed: sum(each) / len(each) for seed, each in finals.items()}


def _average(tables: Sequence[dict[int, float]]) -> dict[int, float]:
    """Mean by seed over all tables that are not empty, of seeds that all of them have."""
    filled = [table for table in tables if table]
    seeds = sorted(set.intersection(*map(set, filled))) if filled else []
    return {seed: sum(table[seed] for table in filled) / len(filled) for seed in seeds}


def _by_origin(finals: dict[str, dict[int, float]]) -> dict[str, Any]:
    found = {name: _estimate(values).to_json() for name, values in finals.items()}
    return found | {"fst_minus_rl": _difference(finals["fst"], finals["rl"]).to_json()}


def _estimate(by_seed: dict[int, float]) -> Estimate:
    return mean_interval(list(by_seed.values()))


def _difference(one: dict[int, float], other: dict[int, float]) -> Estimate:
    """`one` minus `other`, paired by seed."""
    return mean_interval([one[seed] - other[seed] for seed in one if seed in other])
