"""What there is to do: every run with its resolved config, and which are done.

A run is finished when the last line of its metrics says so, which `train` writes at its very end.
One that was shorter goes on.  A folder of other settings stops the plan before anything starts, so
that no report mixes two.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fst_jax.config import (
    CheckpointSettings,
    Config,
    ModelSettings,
    TrackingSettings,
    TrainSettings,
)
from fst_jax.errors import ConfigError, RunError
from fst_jax.reproduction.experiments import Run
from fst_jax.run_folder import RunFolder
from fst_jax.settings import difference, load, load_file, to_yaml

_SHOWN = 3  # conflicts told in full


@dataclass(frozen=True)
class Job:
    """A run in its place."""

    run: Run
    arguments: tuple[str, ...]  # of `python -m fst_jax.train`, but for the model of an origin
    config: Config
    recorded: Path | None  # a folder with its results, made before

    @property
    def folder(self) -> Path:
        return RunFolder.of(self.config).path

    @property
    def made(self) -> bool:
        """Whether it has run to its end in its own folder."""
        return is_finished(self.folder, self.config.train.steps)


def plan(
    runs: Iterable[Run], base: Path, root: Path, recorded: Path | None = None
) -> dict[str, Job]:
    """The jobs of `runs` by key, each run once.

    A variant that has the settings of one of the runs in `main`, which is at least as long, is
    left out.

    Args:
      base: config file that the runs' settings are put on top of.
      root: folder of the groups of runs.
      recorded: folder of runs whose results count as finished.

    Raises:
      ConfigError: settings do not fit; names the run and every problem.
      RunError: a folder below `root` holds a run of other settings.
    """
    jobs = {
        key: _job(run, base, root, recorded) for key, run in {run.key: run for run in runs}.items()
    }
    main: dict[str, int] = {}
    for job in jobs.values():
        if job.run.group == "main":
            main[_method(job.config, steps=False)] = job.config.train.steps

    def stands_alone(job: Job) -> bool:
        longest = main.get(_method(job.config, steps=False), 0)
        return (
            job.run.group == "main"
            or job.run.origin is not None
            or longest < job.config.train.steps
        )

    jobs = {key: job for key, job in jobs.items() if stands_alone(job)}
    _check_folders(jobs)
    return jobs


def to_do(jobs: Mapping[str, Job]) -> list[Job]:
    """The jobs neither made nor recorded, and those whose exports they need, in order."""
    missing = {key for key, job in jobs.items() if not job.made and not job.recorded}
    missing |= {
        needed for key in missing for needed in jobs[key].run.needs if not jobs[needed].made
    }
    return [job for key, job in jobs.items() if key in missing]


def is_finished(folder: Path, end: int | None = None) -> bool:
    """Whether the run has come to its end, which is step `end` if given."""
    ended = RunFolder(folder).ended
    return ended is not None and end in (None, ended)


def _job(run: Run, base: Path, root: Path, recorded: Path | None) -> Job:
    settings = {"seed": run.seed, **run.settings}
    arguments = ["--config", str(base), "--name", run.name, "--output", str(root / run.group)]
    for key, value in settings.items():
        arguments += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    try:
        config, _ = load(arguments, "reproduce", "")
    except ConfigError as error:
        raise ConfigError(f"{run.key}: {error}") from error
    kept = None if recorded is None else recorded / run.group / run.name
    if kept is not None and not (kept.is_dir() and not _changed(kept, run, config)):
        kept = None
    return Job(run, tuple(arguments), config, kept)


def _method(config: Config, model: bool = True, steps: bool = True) -> str:
    """A config without what leaves its results as they are.

    If asked, also without its model, or without its length, which changes no earlier step.
    """
    return to_yaml(
        replace(
            config,
            name="",
            output="",
            checkpoint=CheckpointSettings(),
            tracking=TrackingSettings(),
            model=config.model if model else replace(config.model, path=ModelSettings().path),
            train=config.train if steps else TrainSettings(),
        )
    )


def _changed(kept: Path, run: Run, config: Config) -> bool:
    """Whether a recorded run had other settings, its place and an origin's path aside."""
    try:
        old = load_file(kept / "config.yaml")
    except ConfigError:
        return True
    return _method(old, run.origin is None) != _method(config, run.origin is None)


def _check_folders(jobs: Mapping[str, Job]) -> None:
    conflicts = []
    for job in jobs.values():
        file = job.folder / "config.yaml"
        if not file.is_file():
            continue
        try:
            old = load_file(file)
        except ConfigError as error:
            conflicts.append(f"{job.folder}: {error}")
            continue
        longer = max(old.train, job.config.train, key=lambda train: train.steps)
        old = replace(old, train=longer)
        here = replace(job.config, name=old.name, output=old.output, tracking=old.tracking)
        changed = difference(old, replace(here, model=old.model) if job.run.origin else here)
        if changed:
            conflicts.append(f"{job.folder}: {'; '.join(changed)}")
    if conflicts:
        more = len(conflicts) - _SHOWN
        shown = conflicts[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        lines = "".join(f"\n  {line}" for line in shown)
        raise RunError(
            f"{len(conflicts)} folders hold runs with other settings: remove them or choose "
            f"another --root{lines}"
        )
