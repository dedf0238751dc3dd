"""The claims as a table: what the paper says, what was measured, and whether it holds.

A verdict is a rule, not an opinion: a claim holds where the whole 95 % interval lies on the
paper's side of no effect, is contradicted where it lies on the other side, and is open otherwise.
"""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fst_jax.reporting.claims import QUADRANTS
from fst_jax.reporting.curves import pretty

_EFFICIENCY = "3.0× CodeIO and HoVer, 1.4× math"
_STILL_RISING = 0.05  # of accuracy in the last quarter of a run
_CEILING = "+4.4 CodeIO, +2.8 math, +7.7 HoVer, in points"
_DRIFT = "up to 70 % lower"

# Variants of FST by name: how they are called, and how much worse the paper finds them on CodeIO
# than K = 8, T = 6 with a baseline per problem, or, for the baseline, than K = 2.
_ABLATIONS = {
    "population=1": ("K = 1", "−1.7"),
    "population=2": ("K = 2", "−2.2"),
    "population=8": ("K = 8", ""),
    "cycle_steps=3": ("T = 3", ""),
    "cycle_steps=12": ("T = 12", "−1.7"),
    "baseline=prompt": ("a baseline per prompt", "−1.3"),
    "anchors=12": ("12 anchors", ""),
    "anchors=48": ("48 anchors", ""),
}


@dataclass(frozen=True)
class Row:
    """One line of the table; `figure` is the estimate as text."""

    claim: str
    where: str
    paper: str
    figure: str
    seeds: int
    verdict: str  # "holds" | "contradicted" | "open" | "one seed"; empty where nothing is claimed
    note: str = ""


def rows(claims: Mapping[str, Any]) -> Iterator[Row]:
    """The table's lines, in the order of the paper."""
    for task, entry in claims.get("sample_efficiency", {}).items():
        yield from _efficiency(pretty(task), entry)
        yield from _efficiency(f"{pretty(task)}, with reuse", entry.get("fst_reuse", {}))
    for task, entry in claims.get("ceiling", {}).items():
        where = pretty(task)
        yield _row("Higher at the end: FST minus RL", where, _CEILING, entry["observed"], 0, points)
        difference = entry["difference"]
        fitted = _row("… ceilings of fitted sigmoids", where, _CEILING, difference, 0, points)
        efficiency = claims.get("sample_efficiency", {}).get(task, {})
        rise = efficiency.get("rl_flatness", {}).get("mean") or 0.0
        if rise > _STILL_RISING:
            risen = f"RL still rose by {100 * rise:.0f} points in its last quarter"
            fitted = replace(fitted, note=f"{risen}: a ceiling fitted to that is a guess")
        yield fitted
    for task, entry in claims.get("kl_at_matched_reward", {}).items():
        own, seed = entry["reduction"], entry["seed_prompt"]["reduction"]
        yield _row("Less drift at equal reward, own context", pretty(task), _DRIFT, own, 0, percent)
        yield _row("… KL under the seed prompt", pretty(task), "not said", seed, 0, percent)
    if "plasticity" in claims:
        yield from _plasticity(claims["plasticity"])
    if "continual" in claims:
        yield from _continual(claims["continual"])
    for task, entry in claims.get("quadrants", {}).items():
        yield _quadrants(pretty(task), entry)
    for task, entry in claims.get("prompt_only", {}).items():
        if "fst_minus_prompt" in entry:
            yield _row("FST minus prompt evolution alone", pretty(task), "above on all tasks",
                       entry["fst_minus_prompt"], 0, points)  # fmt: skip
    for task, entry in claims.get("signal", {}).items():
        yield from _signal(pretty(task), entry)
    for task, entry in claims.get("ablations", {}).items():
        yield from _ablations(pretty(task), entry)
    for task, entry in claims.get("fewshot", {}).items():
        yield from _fewshot(pretty(task), entry)


def markdown(claims: Mapping[str, Any]) -> str:
    """The table as Markdown, with the notes below."""
    lines = [
        "| claim | where | paper | here, 95 % interval | seeds | verdict |",
        "|---|---|---|---|--:|---|",
    ]
    table = list(rows(claims))
    lines += [
        f"| {row.claim} | {row.where} | {row.paper} | {row.figure} | {row.seeds} | {row.verdict} |"
        for row in table
    ]
    lines.append("")
    for row in table:
        if row.note:
            note = f"- {row.claim}, {row.where}: {row.note}."
            lines += textwrap.wrap(note, 100, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines).rstrip() + "\n"


def points(value: float) -> str:
    """A difference of accuracies, in points."""
    return scale(100 * value)


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.0f}\u00a0%".replace("-", "−")


def scale(value: float) -> str:
    """A difference on a scale of 0 to 100."""
    return f"{value:+.1f}".replace("-", "−")


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.2f}×"


def shown(estimate: Mapping[str, Any], form: Any) -> str:
    """The mean and its interval as text."""
    if estimate["mean"] is None:
        return "–"
    if estimate["low"] is None or estimate["high"] is None:
        return str(form(estimate["mean"]))
    return f"{form(estimate['mean'])} [{form(estimate['low'])}, {form(estimate['high'])}]"


def verdict(estimate: Mapping[str, Any], nothing: float) -> str:
    """Whether the interval lies above, below or around `nothing`, no effect."""
    if estimate["low"] is None or estimate["high"] is None:
        return "one seed" if estimate["seeds"] == 1 else "open"
    if estimate["low"] > nothing:
        return "holds"
    return "contradicted" if estimate["high"] < nothing else "open"


def _row(
    claim: str, where: str, paper: str, estimate: Mapping[str, Any], nothing: float, form: Any,
    note: str = "",
) -> Row:  # fmt: skip
    figure, judged = shown(estimate, form), verdict(estimate, nothing)
    return Row(claim, where, paper, figure, estimate["seeds"], judged, note)


def _said(claim: str, where: str, estimate: Mapping[str, Any], form: Any) -> Row:
    """A figure that claims nothing."""
    return Row(claim, where, "", shown(estimate, form), estimate["seeds"], "")


def _efficiency(task: str, entry: Mapping[str, Any]) -> Iterator[Row]:
    if "ratio" not in entry:
        return
    names = {
        "ratio": ("Fewer RL rollouts to RL's peak", _EFFICIENCY),
        "ratio_all_rollouts": ("… every rollout counted", "not counted"),
        "ratio_at_90_percent": ("… to 90 % of RL's plateau", "not said"),
        "ratio_all_rollouts_at_90_percent": ("… the same, every rollout counted", "not counted"),
    }
    for name, (claim, paper) in names.items():
        found = entry[name]
        note = ""
        if found["censored"]:
            note = (
                f"FST did not get there in {found['censored']} of {len(found['per_seed'])} seeds, "
                "which count with what RL needed / FST's budget, at most 1"
            )
        yield _row(claim, task, paper, found, 1, times, note)
    if "rl_flatness" in entry:
        yield _said("… RL's gain in its last quarter", task, entry["rl_flatness"], points)


def _plasticity(entry: Mapping[str, Any]) -> Iterator[Row]:
    yield _row("Plasticity: from FST minus from RL", "all second tasks", "+16.7 and +4.3 points",
               entry["fst_minus_rl"], 0, points)  # fmt: skip
    for kind, matches in entry["by_kind"].items():
        for match, found in matches.items():
            yield _row(f"… {kind} task", f"equal {match}", "", found["fst_minus_rl"], 0, points)
        yield _said(f"… {kind} task", "from the base itself", found["base"], percent)


def _continual(entry: Mapping[str, Any]) -> Iterator[Row]:
    if "fst_minus_rl" in entry:
        yield _row("Continual: gain per stage, FST minus RL", "all stages", "",
                   entry["fst_minus_rl"], 0, points)  # fmt: skip
    names = {
        "gain": ("… gain", "", points),
        "gain_percent": ("… the same, of what any arm reached", "+17.1 CodeIO", scale),
        "kept": ("… kept of it to the end", "", points),
        "kept_seed": ("… the same, under the seed prompt", "", points),
    }
    for stage in entry["stages"]:
        where = f"{pretty(stage['task'])}, steps {stage['start']} to {stage['end']}"
        for name, (claim, paper, form) in names.items():
            difference = stage.get(name, {}).get("fst_minus_rl")
            if difference and difference["seeds"]:
                yield _row(f"{claim}, FST minus RL", where, paper, difference, 0, form)


def _quadrants(task: str, entry: Mapping[str, Any]) -> Row:
    """Four means and no verdict: the paper shows where the gain lives, without a figure."""
    names = [f"{weights}_{context}" for weights, context in QUADRANTS]
    figures = [percent(entry[name]["mean"]) if name in entry else "–" for name in names]
    claim = "Base weights: seed prompt, evolved; trained weights: seed prompt, evolved"
    seeds = max(found["seeds"] for found in entry.values())
    return Row(claim, task, "", ", ".join(figures), seeds, "")


def _signal(task: str, entry: Mapping[str, Any]) -> Iterator[Row]:
    if not {"rl", "fst"} <= entry.keys():
        return
    rl, fst = entry["rl"]["step"], entry["fst"]["step"]

    def steps(found: Mapping[str, Any]) -> str:
        return "never" if found["median"] is None else f"{found['median']:g}"

    apart = None not in (rl["low"], fst["high"]) and fst["high"] < rl["low"]
    reverse = None not in (fst["low"], rl["high"]) and rl["high"] < fst["low"]
    judged = "holds" if apart else "contradicted" if reverse else "open"
    seeds = min(rl["seeds"], fst["seeds"])
    yield Row(
        "First signal, median step FST / RL",
        task,
        "50 / 300",
        f"{steps(fst)} / {steps(rl)}",
        seeds,
        "one seed" if seeds == 1 else judged,
    )


def _ablations(task: str, entry: Mapping[str, Any]) -> Iterator[Row]:
    """FST with one setting changed, minus FST; the paper says of some that they are worse."""
    for name, (label, paper) in _ABLATIONS.items():
        found = entry.get("fst", {}).get(name, {}).get("minus_default")
        if not found:
            continue
        claim = f"FST with {label} minus FST"
        if paper:
            worse = {"holds": "contradicted", "contradicted": "holds"}
            judged = verdict(found, 0)
            seeds, judged = found["seeds"], worse.get(judged, judged)
            yield Row(claim, task, paper, shown(found, points), seeds, judged)
        else:
            yield _said(claim, task, found, points)


def _fewshot(task: str, entry: Mapping[str, Any]) -> Iterator[Row]:
    for name, found in entry.get("fst", {}).items():
        count = name.removeprefix("train_size=")
        for arm, label in (("rl", "RL"), ("prompt", "prompt evolution alone")):
            if count != name and f"minus_{arm}" in found:
                claim = f"With {count} training problems: FST minus {label}"
                yield _row(claim, task, "not said", found[f"minus_{arm}"], 0, points)
