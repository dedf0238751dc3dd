"""Run folders as typed records: the only place of the report that knows their files.

A run is read from `config.yaml`, `metrics.jsonl` (or `metrics.jsonl.gz`), `pool/<step>.json` (or
one `pool.json` with `active.json`) and `samples/<step>.jsonl`.  An experiment is a run in a folder
named after its group and called `<task>.<arm>[.<variant>].seed<k>`, where a variant is
`key=value+key=value`; any other run takes its arm from its settings and stands for itself.

The config is read as plain YAML, not as a `Config`, so that runs of older versions stay readable.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fst_jax import plain_yaml
from fst_jax.errors import RunError
from fst_jax.run_folder import by_step

ARMS = ("rl", "prompt", "fst", "fst_reuse", "distill")
GROUPS = (
    "main", "sweep", "signal", "plasticity", "continual", "ablations", "reflector", "fewshot",
)  # fmt: skip
_SEED = re.compile(r"seed(\d+)")


@dataclass(frozen=True)
class Evaluation:
    """One `eval` event, with what the run had spent when it was made."""

    step: int
    task: str
    weights: str  # "base" | "trained"
    context: str  # "pool" | "seed" | "none"
    mean_at_k: float
    best_at_k: float
    k: int
    n: int
    kl_to_base: float  # exact, nats per token
    entropy: float  # nats per token
    rollouts: int  # in RL groups, those reused from fast rounds included
    reused_rollouts: int  # in RL groups, sampled by fast rounds
    evolve_rollouts: int  # sampled by fast rounds
    reflection_calls: int

    @property
    def all_rollouts(self) -> int:
        """Rollouts sampled for RL groups and fast rounds, each counted once."""
        return self.rollouts - self.reused_rollouts + self.evolve_rollouts


@dataclass(frozen=True)
class Run:
    """One run folder.  `group` is empty for a run that is no experiment."""

    path: Path
    name: str
    group: str
    task: str
    arm: str
    variant: Mapping[str, str]
    seed: int
    config: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    steps: tuple[Mapping[str, Any], ...]  # `step` events
    rounds: tuple[Mapping[str, Any], ...]  # `evolve` events
    planned_steps: int

    @property
    def finished(self) -> bool:
        """Whether the evaluation after the last planned step is there."""
        return bool(self.evaluations) and self.evaluations[-1].step >= self.planned_steps

    @property
    def variant_name(self) -> str:
        """The variant as it is written in a run's name; empty for the default."""
        return "+".join(f"{key}={value}" if value else key for key, value in self.variant.items())

    @property
    def tasks(self) -> list[str]:
        """Tasks as evaluations call them: one, or the stages of a stream in order."""
        return list(dict.fromkeys(event.task for event in self.evaluations))

    @property
    def own_context(self) -> str:
        """The context that the run learns under: a student's own, RL's seed, else its pool."""
        if self.arm == "distill":
            return self.config["distill"]["student_prompt"]
        return "seed" if self.arm == "rl" else "pool"

    def curve(self, context: str | None = None, task: str | None = None) -> list[Evaluation]:
        """Held-out evaluations in order of steps, the base under the seed prompt, or none, first.

        Args:
          context: "pool", "seed" or "none"; the run's own when not given.
          task: of a stream, the stage's task; the run's only one when not given.
        """
        context = context or self.own_context
        weights = "base" if self.arm == "prompt" else "trained"
        begins = "none" if context == "none" else "seed"
        kept: dict[int, Evaluation] = {}
        for event in self.evaluations:
            if task is not None and event.task != task:
                continue
            first = event.step == 0 and (event.weights, event.context) == ("base", begins)
            if first or (event.step > 0 and (event.weights, event.context) == (weights, context)):
                kept[event.step] = event
        return [kept[step] for step in sorted(kept)]

    def until(self, step: int) -> "Run":
        """The run as it was after `step` RL steps."""
        return replace(
            self,
            evaluations=tuple(e for e in self.evaluations if e.step <= step),
            steps=tuple(e for e in self.steps if e["step"] <= step),
            rounds=tuple(e for e in self.rounds if e["step"] < step),
            planned_steps=min(step, self.planned_steps),
        )

    def pools(self) -> list[dict[str, Any]]:
        """Every recorded pool file, oldest first."""
        return [_json(path) for path in self._pool_files()]

    def newest_pool(self) -> dict[str, Any] | None:
        """The last recorded pool file alone; None if there is none."""
        files = self._pool_files()
        return _json(files[-1]) if files else None

    def active(self) -> list[list[str]]:
        """Ids of the prompts in use after each fast round, oldest first."""
        path = self.path / "active.json"
        if path.is_file():
            by_round = _json(path)
            return [by_round[step] for step in sorted(by_round, key=int)]
        return [pool["active"] for pool in self.pools()]

    def _pool_files(self) -> list[Path]:
        paths = by_step(self.path / "pool", ".json") or [self.path / "pool.json"]
        return [path for path in paths if path.is_file()]

    def samples(self, step: int) -> list[dict[str, Any]]:
        """The rollouts recorded at a step, of training and of evaluations; [] if none are."""
        path = self.path / "samples" / f"{step}.jsonl"
        return list(_lines(path)) if path.is_file() else []


def find(places: Sequence[Path]) -> list[Path]:
    """Folders of runs: the given ones, or all below them.

    Raises:
      RunError: a place does not exist or holds no run.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise RunError(f"{place} is not a folder: give run folders or a folder of runs")
        configs = [place / "config.yaml"] if (place / "config.yaml").is_file() else []
        folders = [path.parent for path in configs or sorted(place.rglob("config.yaml"))]
        runs = [folder for folder in folders if _metrics(folder) is not None]
        if not runs:
            raise RunError(f"{place} holds no run: no config.yaml beside a metrics.jsonl")
        found |= dict.fromkeys(runs)
    return list(found)


def read_all(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every readable run, and a sentence for each that is left out.

    A broken run is left out; so is an unfinished experiment, whose short curve would bias means.
    An unfinished run that is no experiment stays, since it is shown for itself.  Of two folders
    of the same experiment the first counts.
    """
    runs: list[Run] = []
    left_out: list[str] = []
    taken: dict[tuple[str, str], Path] = {}
    for folder in folders:
        try:
            run = read(folder)
        except RunError as error:
            left_out.append(str(error))
            continue
        if run.group and not run.finished:
            reached = run.evaluations[-1].step if run.evaluations else 0
            left_out.append(
                f"{folder}: unfinished, evaluated up to step {reached} of {run.planned_steps}"
            )
        elif run.group and (run.group, run.name) in taken:
            left_out.append(f"{folder}: the same experiment as {taken[run.group, run.name]}")
        else:
            taken[run.group, run.name] = folder
            runs.append(run)
    return runs, left_out


def read(folder: Path) -> Run:
    """One run.

    Raises:
      RunError: a file is missing or damaged; names it and the line.
    """
    config = _config(folder / "config.yaml")
    metrics = _metrics(folder)
    if metrics is None:
        raise RunError(f"{folder} has no metrics.jsonl: it is not the folder of a run")
    evaluations: list[Evaluation] = []
    steps: list[dict[str, Any]] = []
    rounds: list[dict[str, Any]] = []
    try:
        for event in _lines(metrics):
            if event["event"] == "eval":
                evaluations.append(_evaluation(event, steps, rounds))
            elif event["event"] == "step":
                steps.append(event)
            elif event["event"] == "evolve":
                rounds.append(event)
        arm, evaluated = _arm(config), {event.task for event in evaluations}
        task = config["task"]["name"]
        if len(evaluated) == 1:  # else a stream, or too early to tell
            (task,) = evaluated
        named = _experiment(folder)
        labels = named or (task, arm, {}, int(config["seed"]))
        if labels[1] != arm:
            raise RunError(f"{folder} is named {labels[1]}, but its settings are those of {arm}")
        return Run(
            path=folder,
            name=folder.name,
            group=folder.parent.name if named else "",
            task=labels[0],
            arm=arm,
            variant=labels[2],
            seed=labels[3],
            config=config,
            evaluations=tuple(evaluations),
            steps=tuple(steps),
            rounds=tuple(rounds),
            planned_steps=int(config["train"]["steps"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{folder} is not a run that this version reads: {type(error).__name__} {error}"
        ) from error


def _evaluation(
    event: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    rounds: Sequence[Mapping[str, Any]],
) -> Evaluation:
    reused = sum(int(step.get("reused_rollouts") or 0) for step in steps)
    return Evaluation(
        step=int(event["step"]),
        task=event["task"],
        weights=event["weights"],
        context=event["context"],
        mean_at_k=float(event["mean_at_k"]),
        best_at_k=float(event["best_at_k"]),
        k=int(event["k"]),
        n=int(event["n"]),
        kl_to_base=_number(event["kl_to_base"]),
        entropy=_number(event["entropy"]),
        rollouts=int(steps[-1]["rollouts_total"]) + reused if steps else 0,
        reused_rollouts=reused,
        evolve_rollouts=sum(round_rollouts(event) for event in rounds),
        reflection_calls=sum(int(event["reflection_calls"]) for event in rounds),
    )


def round_rollouts(event: Mapping[str, Any]) -> int:
    """Rollouts of one fast round: its metric calls and the re-scoring of carried prompts."""
    return int(event["metric_calls"]) + int(event["carried_rescored"])


def _number(value: float | None) -> float:
    """NaN and infinities are null in metrics.jsonl."""
    return float("nan") if value is None else float(value)


def _experiment(folder: Path) -> tuple[str, str, dict[str, str], int] | None:
    """Task, arm, variant and seed of an experiment's folder; None for any other folder."""
    parts = folder.name.split(".")
    seed = _SEED.fullmatch(parts[-1])
    if folder.parent.name not in GROUPS or seed is None or len(parts) not in (3, 4):
        return None
    if parts[1] not in ARMS:
        return None
    pairs = [part.partition("=") for part in parts[2].split("+")] if len(parts) == 4 else []
    return parts[0], parts[1], {key: value for key, _, value in pairs}, int(seed[1])


def _arm(config: Mapping[str, Any]) -> str:
    if config.get("distill", {}).get("enabled"):
        return "distill"
    if not config["fast"]["enabled"]:
        return "rl"
    if not config["slow"]["enabled"]:
        return "prompt"
    return "fst_reuse" if config["fast"].get("reuse") else "fst"


def _metrics(folder: Path) -> Path | None:
    paths = (folder / "metrics.jsonl", folder / "metrics.jsonl.gz")
    return next((path for path in paths if path.is_file()), None)


def _config(path: Path) -> dict[str, Any]:
    try:
        node = plain_yaml.compose(path.read_text(encoding="utf-8"))
        config = None if node is None else plain_yaml.value(node)
    except (OSError, ValueError, plain_yaml.BadYaml) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} holds no settings")
    return config


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that was cut off is dropped."""
    try:
        data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    whole, last = lines[:-1], lines[-1]
    for number, line in enumerate(whole, start=1):
        yield _object(line, f"{path}, line {number}")
    if last:
        try:
            yield _object(last, str(path))
        except RunError:
            return  # written while the process was killed


def _json(path: Path) -> dict[str, Any]:
    try:
        return _object(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RunError(f"{place} is damaged: it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise RunError(f"{place} is damaged: it is not a JSON object")
    return data
