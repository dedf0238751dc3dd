"""The folder of one run, runs/<name>/: what lies where, and whether a config may use it.

Running the same config again resumes in its folder; another config is refused with a diff.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fst_jax.config import Config, ParallelSettings
from fst_jax.errors import ConfigError, RunError
from fst_jax.lock import LOCK
from fst_jax.settings import difference, load_file, to_yaml
from fst_jax.tracking import END

_START = ("coordinator", "processes", "process", "start_timeout_s")
# How servers, the reflector and the processes of a run are reached and started, over which devices
# it is spread, what is kept of it and what stops it, by section.
_MAY_CHANGE = {
    "rollout": ("url", "timeout_s", "patience_s", "api_key_env", "weights_dir"),
    "fast": ("lm_url", "lm_api_key_env", "lm_timeout_s", "lm_price_in", "lm_price_out"),
    "parallel": (*_START, "mesh"),
    "checkpoint": ("every", "keep", "keep_every"),
    "guards": ("patience", "max_mismatch", "max_kl"),
}


def by_step(folder: Path, suffix: str = "") -> list[Path]:
    """What a folder holds under a step's number, as <step><suffix>, the oldest first."""
    paths = [p for p in folder.glob(f"*{suffix}") if p.name.removesuffix(suffix).isdigit()]
    return sorted(paths, key=lambda path: int(path.name.removesuffix(suffix)))


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files lie; `check` and `create` look at the disk, nothing else does."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """The folder that a config names."""
        return cls(Path(config.output) / config.name)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ended(self) -> int | None:
        """The step at which the run was finished, if it was, and was not taken up again."""
        try:
            with open(self.metrics, "rb") as file:
                file.seek(max(0, self.metrics.stat().st_size - 4096))
                last = json.loads(file.read().splitlines()[-1])
            return int(last["step"]) if last["event"] == END else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    @property
    def pool(self) -> Path:
        return self.path / "pool"

    @property
    def reflections(self) -> Path:
        return self.path / "reflections.jsonl"

    @property
    def round(self) -> Path:
        return self.path / "round.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def nonfinite(self) -> Path:
        return self.path / "nonfinite"

    @property
    def _draft(self) -> Path:
        return self.path / "config.yaml.tmp"

    def check(self, config: Config) -> None:
        """Refuse a folder that belongs to something else; creates nothing.

        Raises:
          RunError: it holds another config's run, or is no run's folder.
        """
        if not self.path.exists() and not self.path.is_symlink():
            parent = next(p for p in self.path.absolute().parents if p.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise RunError(f"{parent} is not a folder to write to: choose another --output")
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} is not a folder: choose another --name")
        if not self.config.exists():
            own = {self._draft, self.path / LOCK}  # of a process that was killed at the start
            if any(entry not in own for entry in self.path.iterdir()):
                raise RunError(
                    f"{self.path} exists and is not the folder of a run: choose another --name"
                )
            return
        try:
            old = load_file(self.config)
        except ConfigError as error:
            raise RunError(
                f"{self.path} holds a run whose config cannot be read: choose another --name\n"
                f"{error}"
            ) from error
        # Where a run lies, who watches it, what stops it, what is kept of it, how its processes
        # start, on which devices they are, and how its servers and its reflector are reached may
        # change on the way, and it may go on for longer.
        sections: dict[str, Any] = {}
        for section, keys in _MAY_CHANGE.items():
            now = getattr(config, section)
            same = {key: getattr(now, key) for key in keys}
            sections[section] = replace(getattr(old, section), **same)
        old = replace(
            old,
            name=config.name,
            output=config.output,
            tracking=config.tracking,
            watch=config.watch,
            **sections,
            train=max(old.train, config.train, key=lambda train: train.steps),
        )
        changed = difference(old, config)
        if changed:
            lines = "".join(f"\n  {line}" for line in changed)
            raise RunError(
                f"{self.path} holds a run with other settings: choose another --name, or undo "
                f"these changes{lines}"
            )

    def create(self, config: Config) -> None:
        """Make the folder and write the resolved config, as this run has it.

        How its processes start is left out: that is the command's, and differs between them.

        Raises:
          RunError: as `check`, or the folder cannot be written.
        """
        self.check(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            own = {key: getattr(ParallelSettings(), key) for key in _START}
            kept = replace(config, parallel=replace(config.parallel, **own))
            if not self.config.exists() or load_file(self.config) != kept:
                self._draft.write_text(to_yaml(kept), encoding="utf-8")
                self._draft.replace(self.config)
            for folder in (self.pool, self.samples, self.checkpoints):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot write the run's folder {self.path}: {error.strerror}"
            ) from error
