"""Disks that fill up or refuse: one message, nothing lost, and the same end once there is room."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.runs import assert_same, result
from tests.processes import ROOT
from tests.tiny_run import arguments

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")
# A disk of $1, mounted at $2; then the command, $5…, under each of the options in $3, and a copy of
# what it left at $4.
SCRIPT = """
size=$1 disk=$2 options=$3 copy=$4; shift 4
mount -t tmpfs -o size=$size none "$disk"
for option in $options; do
  mount -o remount,$option "$disk"
  code=0; "$@" || code=$?
  echo "code $code under $option"
done
cp -r "$disk/." "$copy"
"""


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    mount = ["mount -t tmpfs none /mnt"]
    return subprocess.run([*NAMESPACE, *mount], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="needs Linux's user namespaces to mount")


def train_on(options: str, size: str, tmp_path: Path, argv: list[str]) -> str:
    """What the runs under each option print; `tmp_path / "copy"` has what is left."""
    (tmp_path / "copy").mkdir()
    command = [sys.executable, "-m", "fst_jax.train", *argv]
    done = subprocess.run(
        [*NAMESPACE, SCRIPT, "sh", size, tmp_path / "disk", options, tmp_path / "copy", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", ["200k", "500k", "900k", "1300k"])
def test_a_full_disk(size: str, finished: Path, model: Path, task: Path, tmp_path: Path) -> None:
    """It has no room for the first checkpoint, the export, the second one, or the last pages."""
    (tmp_path / "disk").mkdir()
    argv = arguments(model, task, tmp_path / "disk")
    printed = train_on(f"size={size} size=64m", size, tmp_path, argv)
    assert f"code 2 under size={size}" in printed and "code 0 under size=64m" in printed, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in printed, printed
    assert "cannot write" in printed and "No space left" in printed, printed
    assert_same(result(tmp_path / "copy/ci_tiny"), result(finished / "ci_tiny"))


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(
    finished: Path, model: Path, task: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    argv = arguments(model, task, tmp_path / "disk")
    printed = train_on("ro rw ro", "64m", tmp_path, argv)
    assert "code 2 under ro" in printed and "code 0 under rw" in printed, printed
    assert "Traceback" not in printed and "is not a folder to write to" in printed, printed
    assert_same(result(tmp_path / "copy/ci_tiny"), result(finished / "ci_tiny"))
