"""Which runs a figure or claim is made of: by group, task, arm and variant, paired by seed."""

from collections.abc import Iterable, Sequence

from fst_jax.reporting.runs import Run


def chosen(
    runs: Iterable[Run],
    group: str | None = None,
    task: str | None = None,
    arm: str | None = None,
    variant: str | None = None,
) -> list[Run]:
    """Runs that agree with everything given, by seed; `variant` is the name, "" the default."""
    kept = [
        run
        for run in runs
        if (group is None or run.group == group)
        and (task is None or run.task == task)
        and (arm is None or run.arm == arm)
        and (variant is None or run.variant_name == variant)
    ]
    return sorted(kept, key=lambda run: run.seed)


def tasks_of(runs: Iterable[Run], group: str) -> list[str]:
    """Tasks with runs in a group, in alphabetical order."""
    return sorted({run.task for run in runs if run.group == group})


def pairs(one: Sequence[Run], other: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of two arms with the same seed."""
    by_seed = {run.seed: run for run in other}
    return [(run, by_seed[run.seed]) for run in one if run.seed in by_seed]


def final(run: Run, context: str | None = None, task: str | None = None) -> float:
    """Mean of mean@k over the last two evaluations under a context, the run's own by default."""
    last = [e.mean_at_k for e in run.curve(context, task) if e.step > 0][-2:]
    return sum(last) / len(last) if last else float("nan")
