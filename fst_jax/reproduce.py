"""python -m fst_jax.reproduce: the experiments that test the paper's claims.

    python -m fst_jax.reproduce --list
    python -m fst_jax.reproduce efficiency drift --seeds 3
    python -m fst_jax.reproduce all
    python -m fst_jax.reproduce plasticity --quick
    python -m fst_jax.reproduce record

An experiment is a list of training runs below <root>/<group>/; several share runs, and each run
is made once.  Then the report is written to <root>/report.  The same command again goes on
where it was stopped.  `record` keeps the results of all finished runs in small files; `demo`
trains FST and RL side by side.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from fst_jax.report import report
from fst_jax.reporting.runs import read
from fst_jax.reproduction.comparison import prompts, table
from fst_jax.reproduction.experiments import DEMO, EXPERIMENTS, Experiment
from fst_jax.reproduction.plan import Job, plan, to_do
from fst_jax.reproduction.record import USUAL_ROOT, record
from fst_jax.reproduction.workers import Workers
from fst_jax.settings import command

SPECIAL = ("all", "demo", "record")


def reproduce(options: argparse.Namespace) -> int:
    """Make the runs of the chosen experiments, then the report; returns the exit code."""
    demo = options.experiments == ["demo"]
    jobs = jobs_of(options)
    waiting = to_do(jobs)
    print(f"{len(jobs)} runs, {len(waiting)} of them to do, {options.jobs} at a time", flush=True)
    outcome = Workers(waiting, options.root, options.jobs, echo=demo).work()
    if outcome.stopped:
        print(f"stopped; to go on:\n  python -m fst_jax.reproduce {shlex.join(options.given)}")
        return 0
    if outcome.failed:
        failed = "".join(f"\n  {key}" for key in outcome.failed)
        print(f"{len(outcome.failed)} of {len(jobs)} runs failed:{failed}", file=sys.stderr)
    if demo and not outcome.failed:
        runs = {run.arm: run for run in (read(job.folder) for job in jobs.values())}
        print("", *table(runs["rl"], runs["fst"]), "", *prompts(runs["fst"]), "", sep="\n")
    places = places_of(jobs, options.root)
    if places:
        report(places, options.root / "report")
    return 1 if outcome.failed else 0


def jobs_of(options: argparse.Namespace) -> dict[str, Job]:
    """The jobs of the chosen experiments."""
    runs = [
        run
        for experiment in chosen(options.experiments)
        for run in experiment.runs(options.seeds, options.quick)
        if any(fnmatch(run.key, pattern) for pattern in options.only or ["*"])
    ]
    return plan(runs, options.config, options.root, options.recorded)


def chosen(names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names; `all` are those of the paper's claims."""
    if names == ["demo"]:
        return [DEMO]
    return [EXPERIMENTS[name] for name in (EXPERIMENTS if "all" in names else names)]


def places_of(jobs: dict[str, Job], root: Path) -> list[Path]:
    """What the report reads: the root, and recorded runs that were not made anew."""
    kept = [job.recorded for job in jobs.values() if job.recorded and not job.made]
    made = any(job.made for job in jobs.values())
    return [*([root] if made else []), *kept]


def listed(options: argparse.Namespace) -> list[str]:
    """The experiments with their claims, or the runs of the chosen ones and which are done."""
    if not options.experiments:
        return [
            f"{name:12}{len(experiment.runs(options.seeds, options.quick)):>4} runs  "
            f"{experiment.claim}"
            for name, experiment in EXPERIMENTS.items()
        ]
    states = {True: "finished", False: "to do"}
    return [
        f"{'recorded' if job.recorded and not job.made else states[job.made]:10}{key}"
        for key, job in jobs_of(options).items()
    ]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; exits with code 2 and a message where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m fst_jax.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = (*EXPERIMENTS, *SPECIAL)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(names))
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, one task, few steps: does it work?"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="a part: runs like 'main/star_graph.fst.*'; may be given several times",
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds of every run (default: 5)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("configs/small_world.yaml"),
        help="settings that all runs share (default: configs/small_world.yaml)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        help=f"folder of the runs (default: {USUAL_ROOT}, {USUAL_ROOT}_quick or runs/demo)",
    )
    parser.add_argument(
        "--recorded",
        type=Path,
        help="runs recorded there count as finished; with `record`, where to keep the results "
        "(then by default: reproduction)",
    )
    options = parser.parse_args(arguments)
    options.given = arguments
    for name in options.experiments:
        if name not in names:
            parser.error(f"no experiment {name!r}: choose from {', '.join(names)}")
        if name in ("demo", "record") and len(options.experiments) > 1:
            parser.error(f"{name} stands alone")
    if not options.experiments and not options.list:
        parser.error(f"which experiment? Choose from {', '.join(names)}")
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    if options.experiments == ["demo"]:
        options.seeds = 1
        options.root = options.root or Path("runs/demo")
    quick_root = USUAL_ROOT.with_name(f"{USUAL_ROOT.name}_quick")
    options.root = options.root or (quick_root if options.quick else USUAL_ROOT)
    return options


def main(arguments: list[str]) -> int:
    """The command."""
    options = parse(arguments)
    if options.experiments == ["record"]:
        recorded = options.recorded or Path("reproduction")
        count = record(options.root, recorded)
        print(f"{count} runs kept in {recorded}; claims: {recorded / 'claims.json'}")
        return 0
    if options.list:
        print("\n".join(listed(options)))
        return 0
    return reproduce(options)


if __name__ == "__main__":
    sys.exit(command(main))
