"""Keeps what runs found in small files that can be committed, and derives the claims from them.

Of each finished run: config.yaml, metrics.jsonl.gz, pool.json (the last pool) and active.json (the
ids of the prompts in use after each fast round); of main runs with the first seed also the first
and the last samples.  The same run gives the same bytes, wherever it was made; paths of the machine
do not get in.
"""

import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fst_jax.config import Config
from fst_jax.errors import RunError
from fst_jax.reporting.claims import derive
from fst_jax.reporting.runs import GROUPS, find, read_all
from fst_jax.reproduction.plan import is_finished
from fst_jax.run_folder import by_step
from fst_jax.settings import load_file, to_yaml

USUAL_ROOT = Path("runs/reproduction")


def record(root: Path, recorded: Path) -> int:
    """Copy all finished runs below `root` to `recorded`, derive its claims.json; returns how many.

    Raises:
      RunError: no run is finished, or `recorded` cannot be written.
    """
    folders = list(finished(root))
    if not folders:
        raise RunError(f"{root} holds no finished run: make some, or name another --root")
    try:
        for folder in folders:
            _keep(folder, root, recorded / folder.relative_to(root))
        runs, _ = read_all(find([recorded]))
        claims = json.dumps(derive(runs), indent=1) + "\n"
        (recorded / "claims.json").write_text(claims, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {recorded}: {error.strerror}") from error
    return len(folders)


def finished(root: Path) -> Iterator[Path]:
    """The folders of finished runs below the groups of a root, in order of their names."""
    for group in GROUPS:
        yield from (path for path in sorted((root / group).glob("*")) if is_finished(path))


def _keep(folder: Path, root: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    config = _anywhere(load_file(folder / "config.yaml"), folder, root)
    (kept / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    metrics = (folder / "metrics.jsonl").read_bytes()
    (kept / "metrics.jsonl.gz").write_bytes(gzip.compress(metrics, mtime=0))
    pools = by_step(folder / "pool", ".json")
    if pools:
        (kept / "pool.json").write_bytes(pools[-1].read_bytes())
        active = {path.stem: json.loads(path.read_text("utf-8"))["active"] for path in pools}
        (kept / "active.json").write_text(json.dumps(active) + "\n", encoding="utf-8")
    samples = by_step(folder / "samples", ".jsonl")
    if samples and folder.parent.name == "main" and folder.name.endswith(".seed0"):
        (kept / "samples").mkdir()
        for path in (samples[0], samples[-1]):
            (kept / "samples" / path.name).write_bytes(path.read_bytes())


def _anywhere(config: Config, folder: Path, root: Path) -> Config:
    """The config as if the run had been made below the usual root, without absolute paths."""
    model = Path(config.model.path)
    if model.absolute().is_relative_to(root.absolute()):
        model = USUAL_ROOT / model.absolute().relative_to(root.absolute())
    elif model.is_absolute():
        model = Path(model.name)
    output = str(USUAL_ROOT / folder.parent.relative_to(root))
    return replace(config, output=output, model=replace(config.model, path=str(model)))
