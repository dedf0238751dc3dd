"""One run read closely: how it went, its hints, its prompts, rollouts before and after."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fst_jax import plain_yaml
from fst_jax.reporting.claims import cost
from fst_jax.reporting.family import Member, family, flattened
from fst_jax.reporting.runs import Evaluation, Run
from fst_jax.reporting.select import chosen, tasks_of
from fst_jax.tracking import duration

_SHOWN_PROBLEMS = 4
_SHOWN_RUNS = 12  # that are no experiments


@dataclass(frozen=True)
class Example:
    """One held-out problem before and after training."""

    question: str
    answer: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class Hint:
    """A warning of a run, as its steps logged it."""

    text: str  # as at its last step
    first: int
    last: int
    steps: int  # that had it


@dataclass(frozen=True)
class Portrait:
    """One run as the page shows it."""

    run: Run
    outcome: Sequence[str]  # sentences
    hints: Sequence[Hint]
    in_use: Sequence[Member]  # prompts at the end, the best first
    family: Sequence[tuple[int, Member]]  # generation, prompt
    proposals: str  # a sentence on what became of them; empty without fast rounds
    examples: Sequence[Example]
    commands: Sequence[tuple[str, str]]  # what it does, the command
    config: str


def portrait(run: Run) -> Portrait:
    """Everything that the page says of one run."""
    tree = flattened(family(run.pools()))
    in_use = [member for _, member in tree if member.rank is not None]
    return Portrait(
        run,
        list(outcome(run)),
        hints(run),
        sorted(in_use, key=lambda member: member.rank or 0),
        tree,
        proposals(run),
        examples(run),
        list(commands(run)),
        plain_yaml.dump(dict(run.config)),
    )


def portrayed(runs: Sequence[Run]) -> list[Run]:
    """Runs to read closely: those that are no experiments, and one FST run of each main task."""
    single = [run for run in runs if not run.group][:_SHOWN_RUNS]
    first = [chosen(runs, "main", task, "fst", "")[:1] for task in tasks_of(runs, "main")]
    return single + [run for of_task in first for run in of_task]


def outcome(run: Run) -> Iterator[str]:
    """What came out of it for what it spent, a sentence each."""
    for task in run.tasks:
        curve = run.curve(task=task)
        if len(curve) > 1:
            yield _change(curve[0], curve[-1], task if len(run.tasks) > 1 else "")
    if not run.evaluations:
        yield "Nothing has been evaluated yet."
    spent = cost(run)
    if spent["rollouts"] or spent["evolve_rollouts"]:
        rollouts = spent["rollouts"] + spent["evolve_rollouts"]
        yield (
            f"It sampled {rollouts:,.0f} rollouts, {spent['rollouts']:,.0f} of them for RL groups "
            f"and {spent['evolve_rollouts']:,.0f} for prompt evolution, and took "
            f"{duration(spent['seconds'])} without evaluation."
        )


def hints(run: Run) -> list[Hint]:
    """The warnings of its steps, one for each code, in the order in which they first came."""
    told: dict[str, list[tuple[int, str]]] = {}
    for event in run.steps:
        for text in event.get("warnings") or []:
            told.setdefault(text.partition(":")[0], []).append((int(event["step"]), text))
    return [Hint(steps[-1][1], steps[0][0], steps[-1][0], len(steps)) for steps in told.values()]


def proposals(run: Run) -> str:
    """How many edits were proposed and kept, and why the others were refused."""
    if not run.rounds:
        return ""
    refused: Counter[str] = Counter()
    for event in run.rounds:
        refused.update(event["rejected_by_reason"])
    proposed = sum(event["proposals"] for event in run.rounds)
    accepted = sum(event["accepted"] for event in run.rounds)
    rounds = "1 fast round" if len(run.rounds) == 1 else f"{len(run.rounds)} fast rounds"
    reasons = ", ".join(f"{reason} {count}" for reason, count in refused.most_common())
    said = f"{rounds} proposed {proposed} edits and kept {accepted}"
    return f"{said}; refused: {reasons}." if reasons else f"{said}."


def examples(run: Run) -> list[Example]:
    """Held-out problems that were recorded in the first and the last evaluation."""
    if not run.evaluations:
        return []
    weights = "base" if run.arm == "prompt" else "trained"
    before = _evaluated(run, 0, "base", "seed")
    after = _evaluated(run, run.evaluations[-1].step, weights, run.own_context)
    return [
        Example(old["question"], old["answer"], old, after[problem])
        for problem, old in before.items()
        if problem in after
    ][:_SHOWN_PROBLEMS]


def commands(run: Run) -> Iterator[tuple[str, str]]:
    """What goes on with the run, and what makes it again."""
    config = shlex.quote((run.path / "config.yaml").as_posix())
    train = f"python -m fst_jax.train --config {config}"
    folder = Path(str(run.config.get("output") or ".")) / str(run.config.get("name"))
    if not run.group and not run.finished:
        yield f"Go on, in {folder}", train
    elif not run.group:
        longer = f"{train} --train.steps {2 * run.planned_steps}"
        yield "Go on for as long again", longer
    yield "Make it again under another name", f"{train} --name {shlex.quote(run.name)}_again"


def _change(before: Evaluation, after: Evaluation, task: str) -> str:
    name = f"mean@{after.k} of {task}" if task else f"mean@{after.k}"
    return (
        f"Held-out {name} went from {_percent(before.mean_at_k)} under {_called(before)} to "
        f"{_percent(after.mean_at_k)} at step {after.step} under {_called(after)} "
        f"(best@{after.k}: {_percent(before.best_at_k)} to {_percent(after.best_at_k)}; "
        f"{after.n} answers), at a KL to the base of {after.kl_to_base:.3g} nats per token."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _called(event: Evaluation) -> str:
    contexts = {"seed": "the seed prompt", "pool": "evolved prompts", "none": "no prompt"}
    return contexts.get(event.context, event.context)


def _evaluated(run: Run, step: int, weights: str, context: str) -> dict[str, dict[str, Any]]:
    """One recorded held-out rollout of each problem."""
    found: dict[str, dict[str, Any]] = {}
    for sample in run.samples(step):
        if (sample.get("weights"), sample.get("context")) == (weights, context):
            found.setdefault(sample["problem"], sample)
    return found
