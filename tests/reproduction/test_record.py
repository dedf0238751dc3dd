"""Recording: small files, the same bytes every time, no paths of the machine, true claims."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from fst_jax.errors import RunError
from fst_jax.reporting.claims import derive
from fst_jax.reporting.runs import find, read, read_all
from fst_jax.reproduction.record import record
from fst_jax.settings import load_file
from tests.reproduction.records import write_run
from tests.reproduction.test_plan import log

CURVES = {"rl": [0.0, 0.1, 0.3, 0.6, 0.7, 0.7, 0.7], "fst": [0.0, 0.5, 0.7, 0.8, 0.9, 0.9, 0.9]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two seeds of two arms, finished, and a third seed that is not."""
    for arm, rewards in CURVES.items():
        for seed in range(3):
            folder = tmp_path / f"root/main/star_graph.{arm}.seed{seed}"
            write_run(folder, arm, rewards, seed=seed)
            log(folder, "end" if seed < 2 else "stopped", 36)
    return tmp_path / "root"


def files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_finished_runs_are_kept_and_claims_follow_from_them(root: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "kept"
    assert record(root, recorded) == 4
    names = {f"main/star_graph.{arm}.seed{seed}" for arm in CURVES for seed in (0, 1)}
    expected = {f"{name}/{file}" for name in names for file in ("config.yaml", "metrics.jsonl.gz")}
    assert set(files(recorded)) == expected | {"claims.json"}
    claims = json.loads((recorded / "claims.json").read_text())
    runs, left_out = read_all(find([recorded]))
    assert not left_out and claims == json.loads(json.dumps(derive(runs)))
    assert claims["sample_efficiency"]["star_graph"]["ratio"]["mean"] == pytest.approx(2.0)


def test_a_recorded_run_reads_like_the_run(root: Path, tmp_path: Path) -> None:
    record(root, tmp_path / "kept")
    name = "main/star_graph.fst.seed1"
    ours, theirs = read(tmp_path / "kept" / name), read(root / name)
    assert (ours.evaluations, ours.steps) == (theirs.evaluations, theirs.steps)
    assert (ours.arm, ours.seed, ours.group) == (theirs.arm, theirs.seed, theirs.group)


def test_the_same_run_gives_the_same_bytes_anywhere(root: Path, tmp_path: Path) -> None:
    record(root, tmp_path / "one")
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    record(moved, tmp_path / "other")
    record(moved, tmp_path / "other")  # again, over what is there
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_no_path_of_the_machine_is_kept(root: Path, tmp_path: Path) -> None:
    export = root / "main/star_graph.rl.seed0/exports/12"
    for name, model in (("rl.seed0", str(export)), ("fst.seed0", "/home/someone/models/tiny")):
        file = root / f"main/star_graph.{name}/config.yaml"
        text = file.read_text().replace("models/SmolLM2-135M-Instruct", model)
        file.write_text(text)
    record(root, tmp_path / "kept")
    for name, content in files(tmp_path / "kept").items():
        text = gzip.decompress(content) if name.endswith(".gz") else content
        assert str(tmp_path).encode() not in text and b"/home" not in text, name
    kept = load_file(tmp_path / "kept/main/star_graph.rl.seed0/config.yaml")
    assert kept.model.path == "runs/reproduction/main/star_graph.rl.seed0/exports/12"
    assert kept.output == "runs/reproduction/main"


def test_a_real_run_can_be_recorded(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "root/main/star_graph.fst.seed0"
    shutil.copytree(finished / "ci_tiny", folder)
    assert record(tmp_path / "root", tmp_path / "kept") == 1
    kept = tmp_path / "kept/main/star_graph.fst.seed0"
    assert sorted(path.name for path in kept.iterdir()) == [
        "active.json",
        "config.yaml",
        "metrics.jsonl.gz",
        "pool.json",
        "samples",
    ]
    newest = max((folder / "pool").glob("*.json"), key=lambda path: int(path.stem))
    assert (kept / "pool.json").read_bytes() == newest.read_bytes()
    assert read(kept).active() == read(folder).active() != []
    assert (
        gzip.decompress((kept / "metrics.jsonl.gz").read_bytes())
        == (folder / "metrics.jsonl").read_bytes()
    )


def test_nothing_finished_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run"):
        record(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_first_seed_of_main_runs_keeps_samples_from_before_and_after(
    root: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        samples = root / f"main/star_graph.fst.seed{seed}/samples"
        samples.mkdir()
        for step in (0, 6, 12, 120):
            (samples / f"{step}.jsonl").write_text(f'{{"step": {step}}}\n')
    record(root, tmp_path / "kept")
    kept = [name for name in files(tmp_path / "kept") if "samples" in name]
    assert kept == [f"main/star_graph.fst.seed0/samples/{step}.jsonl" for step in (0, 120)]
