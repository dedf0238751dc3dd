"""The launchers: what they print and refuse, and how they go on when machines are taken back.

No cloud is asked for anything.  gcloud, sbatch and the like are programs in a folder of the test's,
which note how they were called and answer what the test says.
"""

import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fst_jax import schema
from fst_jax.settings import load

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
CONFIG = "configs/ci_tiny.yaml"
OUTSIDE = ("gcloud", "xpk", "sbatch", "srun", "scontrol", "nvidia-smi", "sudo", "curl")
TPU = (
    *("--name", "box", "--zone", "us-east5-b", "--type", "v6e-64", "--share", "10.0.0.2:/fst"),
    *("--project", "lab", "--spot"),
)
GKE = (
    *("--cluster", "big", "--name", "first", "--type", "v6e-16", "--image", "registry/fst:1"),
    *("--storage", "share", "--mount", "/mnt/fst"),
)
SLURM = ("--nodes", "2", "--gpus-per-node", "8", "--time", "24:00:00")
BOX = ("--model", "Qwen/Qwen3-8B", "--server-gpus", "4", "--tp", "2", "--gpus", "8")
Launch = Callable[..., "Launched"]


class Launched:
    """A launcher that has ended: what it printed, and the calls of programs outside."""

    def __init__(self, done: subprocess.CompletedProcess[str], calls: Path) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.calls = calls.read_text().splitlines() if calls.exists() else []

    @property
    def commands(self) -> list[list[str]]:
        """The printed commands, as lists of words."""
        return [shlex.split(line) for line in self.out.splitlines() if not line.startswith("#")]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Runs a launcher with programs that note their calls, and run the given lines of bash."""
    calls = tmp_path / "calls"

    def run(name: str, *arguments: str, **answers: str) -> Launched:
        programs = tmp_path / "programs"
        programs.mkdir(exist_ok=True)
        for program in {*OUTSIDE, *answers}:
            path = programs / program
            note = f'echo "{program} $*" >>{shlex.quote(str(calls))}\n'
            path.write_text(f"#!/usr/bin/env bash\n{note}{answers.get(program, 'exit 1')}\n")
            path.chmod(0o755)
        (programs / "sleep").write_text("#!/bin/sh\n")
        (programs / "sleep").chmod(0o755)
        done = subprocess.run(
            ["bash", LAUNCH / name, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "STATE": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Launched(done, calls)

    return run


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def settings_of(command: list[str]) -> dict[str, str]:
    """What a command gives to the training, which must be able to read it."""
    start = next(i for i, word in enumerate(command) if word in ("train", "fst_jax.train")) + 1
    load([*command[start:]], "train", "Train.")
    return dict(zip(command[start::2], command[start + 1 :: 2], strict=True))


def test_a_tpu_is_asked_for_used_and_given_back(launch: Launch) -> None:
    told = launch("tpu.sh", "--dry-run", *TPU, CONFIG, "--train.steps", "30", "--name", "a b")
    assert (told.code, told.err, told.calls) == (0, "", [])
    place = ["--zone", "us-east5-b", "--project", "lab"]
    created, sent, ran, deleted = told.commands
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    assert created == [
        *queued, "create", "box", "--node-id", "box", *place, "--accelerator-type", "v6e-64",
        "--runtime-version", "v2-alpha-tpuv6e", "--spot",
    ]  # fmt: skip
    machine = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert sent[:4] == machine and sent[4] == "scp" and sent[-2:] == ["--worker", "all"]
    assert ran[:-1] == [*machine, "ssh", "box", *place, "--worker", "all", "--command"]
    worker = shlex.split(ran[-1].rpartition("exec bash ")[2])
    assert worker == [
        "fst_jax/launch/tpu_worker.sh", "10.0.0.2:/fst", CONFIG, "--train.steps", "30",
        "--name", "a b",
    ]  # fmt: skip
    assert deleted == [*queued, "delete", "box", *place, "--force", "--quiet"]


def test_a_tpu_at_once(launch: Launch) -> None:
    told = launch("tpu.sh", "--dry-run", *TPU[:-3], "--now", "--keep", CONFIG)
    created, *_, ran = told.commands
    assert created == [
        "gcloud", "compute", "tpus", "tpu-vm", "create", "box", "--zone", "us-east5-b",
        "--accelerator-type", "v6e-64", "--version", "v2-alpha-tpuv6e",
    ]  # fmt: skip
    assert ran[4] == "ssh"  # and nothing is deleted
    assert "billed until you delete it" in told.out


@pytest.mark.parametrize(
    ("kind", "version"),
    [("v5p-128", "v2-alpha-tpuv5"), ("v5litepod-16", "v2-alpha-tpuv5-lite"),
     ("v4-32", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_runtime_versions(kind: str, version: str, launch: Launch) -> None:
    told = launch("tpu.sh", "--dry-run", *TPU, "--type", kind, CONFIG)
    assert option(told.commands[0], "--runtime-version") == version


# A TPU that is asked for, taken back in its first run, asked for again, and used to the end.
CLOUD = r"""
has() { [[ -e "$STATE/$1" ]]; }
case "$*" in
  *queued-resources\ describe*)
    if has suspended; then echo SUSPENDED
    elif has tpu; then echo ACTIVE
    else echo "ERROR: (gcloud) NOT_FOUND: no such thing" >&2; exit 1; fi ;;
  *tpu-vm\ describe*) if has suspended; then echo PREEMPTED; else echo READY; fi ;;
  *create*) touch "$STATE/tpu" ;;
  *delete*) rm -f "$STATE/tpu" "$STATE/suspended" ;;
  *scp*) ;;
  *ssh*) if ! has once; then touch "$STATE/once" "$STATE/suspended"; exit 255; fi ;;
esac
"""


def verbs(calls: list[str]) -> list[str]:
    """What was done, without the questions in between."""
    found = [re.search(r"\b(create|delete|scp|ssh)\b", call) for call in calls]
    return [match[1] for match in found if match]


def test_a_tpu_that_is_taken_back_is_asked_for_again(launch: Launch) -> None:
    told = launch("tpu.sh", *TPU, CONFIG, gcloud=CLOUD)
    assert told.code == 0, told.err
    assert verbs(told.calls) == [
        *("create", "scp", "ssh"),
        *("delete", "create", "scp", "ssh"),  # the same command, which resumes
        "delete",
    ]
    assert "exit code 255; starting again" in told.err


def test_a_tpu_that_is_there_is_used_and_a_users_error_leaves_it(launch: Launch) -> None:
    there = CLOUD.replace("if ! has once; then touch", "exit 2; if false; then touch")
    told = launch("tpu.sh", *TPU, CONFIG, gcloud=f"touch $STATE/tpu\n{there}")
    assert told.code == 2
    assert verbs(told.calls) == ["scp", "ssh"]
    assert "it is billed" in told.err


def test_a_tpu_that_cannot_be_deleted_is_told(launch: Launch) -> None:
    kept = CLOUD.replace("*delete*) rm", "*delete*) exit 1; rm").replace("! has once", "false")
    told = launch("tpu.sh", *TPU, CONFIG, gcloud=kept)
    assert told.code == 2
    assert "TPU box could not be deleted, and is billed" in told.err


def test_a_run_that_always_fails_is_given_up(launch: Launch) -> None:
    always = CLOUD.replace("if ! has once; then touch", "exit 134; if false; then touch")
    told = launch("tpu.sh", *TPU, "--restarts", "2", CONFIG, gcloud=always)
    assert told.code == 2
    assert verbs(told.calls) == ["create", *3 * ("scp", "ssh")]
    assert "started again 2 times" in told.err and "billed" in told.err


def test_a_cloud_that_cannot_be_asked_is_asked_again(launch: Launch) -> None:
    flaky = f'if [[ ! -e "$STATE/f" ]]; then touch "$STATE/f"; echo broken >&2; exit 1; fi\n{CLOUD}'
    told = launch("tpu.sh", *TPU, CONFIG, gcloud=flaky.replace("! has once", "false"))
    assert told.code == 0, told.err
    assert verbs(told.calls) == ["create", "scp", "ssh", "delete"]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A folder as it is on a TPU's host, whose training prints its arguments and ends with 75."""
    folder = tmp_path / "fst_jax"
    for name, lines in {
        "launch/tpu_worker.sh": (LAUNCH / "tpu_worker.sh").read_text(),
        ".venv/bin/fst": "",
        ".venv/bin/python": '#!/bin/sh\nprintf "%s\\n" "$@"\nexit 75\n',
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines)
        path.chmod(0o755)
    return folder / "launch/tpu_worker.sh"


def test_a_host_starts_the_training_and_follows_it(host: Path, launch: Launch) -> None:
    told = launch(
        str(host), "10.0.0.2:/fst", CONFIG, "--task.seed_prompt", "Answer it.",
        mountpoint="", pgrep="exit 1", sudo='shift; exec "$@"',
    )  # fmt: skip
    assert told.code == 75, told.err
    assert settings_of(told.out.splitlines()) == {
        "--config": CONFIG,
        "--output": "/mnt/fst/runs",
        "--parallel.coordinator": "auto",
        "--watch.stopped_exit": "75",
        "--watch.notice_url": "http://metadata.google.internal/computeMetadata/v1/instance/"
        "maintenance-event",
        "--task.seed_prompt": "Answer it.",
    }


def test_a_host_on_which_the_training_runs_only_follows_it(host: Path, launch: Launch) -> None:
    folder = host.parents[1]
    running = subprocess.Popen(["sleep", "0.5"])
    threading.Thread(target=running.wait).start()  # else its id would stay
    (folder / "train.pid").write_text(f"{running.pid}\n")
    (folder / "train.log").write_text("step 1/6\n")
    (folder / "train.code").write_text("0\n")
    told = launch(str(host), "10.0.0.2:/fst", CONFIG, mountpoint="", pgrep="exit 0")
    assert (told.code, told.out) == (0, "step 1/6\n")
    assert not any(call.startswith("sudo") for call in told.calls)


def test_gke_through_xpk(launch: Launch) -> None:
    told = launch("gke.sh", "--dry-run", *GKE, "--spot", "--zone", "us-east5-b", CONFIG,
                  "--task.seed_prompt", "Answer it.")  # fmt: skip
    assert (told.code, told.err, told.calls) == (0, "", [])
    (command,) = told.commands
    assert command[:4] == ["xpk", "workload", "create", "--cluster"]
    for name, value in {
        "--cluster": "big",
        "--workload": "first",
        "--tpu-type": "v6e-16",
        "--docker-image": "registry/fst:1",
        "--storage": "share",
        "--max-restarts": "100",
        "--restart-on-exit-codes": "3,75",
        "--zone": "us-east5-b",
    }.items():
        assert option(command, name) == value
    assert "--spot" in command
    inside = shlex.split(option(command, "--command"))
    assert inside[:3] == ["exec", "fst", "train"]
    assert settings_of(inside) == {
        "--config": CONFIG,
        "--output": "/mnt/fst/runs",
        "--parallel.coordinator": "auto",
        "--watch.stopped_exit": "75",
        "--task.seed_prompt": "Answer it.",
    }
    assert "xpk cluster delete --cluster big" in told.out


def test_slurm(launch: Launch) -> None:
    told = launch("slurm.sh", "--dry-run", *SLURM, "--partition=gpu", CONFIG, "--seed", "1")
    assert (told.code, told.err, told.calls) == (0, "", [])
    (command,) = told.commands
    assert command == [
        "sbatch", "--job-name", "ci_tiny", "--nodes", "2", "--ntasks-per-node", "1",
        "--gpus-per-node", "8", "--time", "24:00:00", "--requeue", "--signal", "TERM@120",
        "--open-mode", "append", "--output", "runs/ci_tiny-%j.log", "--partition=gpu",
        "launch/slurm_job.sh", CONFIG, "--seed", "1",
    ]  # fmt: skip


@pytest.mark.parametrize(("code", "goes_on"), [(0, False), (75, True), (3, True), (2, False)])
def test_a_slurm_job_that_has_not_come_to_its_end_queues_again(
    code: int, goes_on: bool, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    srun = f'echo "devices $JAX_LOCAL_DEVICE_IDS"; exit {code}'
    told = launch("slurm_job.sh", CONFIG, "--seed", "1", srun=srun, scontrol="")
    assert told.code == code, told.err
    assert told.out == "devices 0,1,2,3\n"
    ran, *more = (call.split() for call in told.calls)
    assert settings_of(ran) == {
        "--config": CONFIG,
        "--parallel.coordinator": "auto",
        "--watch.stopped_exit": "75",
        "--seed": "1",
    }
    assert more == ([["scontrol", "requeue", "17"]] if goes_on else [])


def test_a_gpu_box(launch: Launch) -> None:
    told = launch("gpu_box.sh", "--dry-run", CONFIG, "--seed", "1")
    assert (told.code, told.err, told.calls) == (0, "", [])
    assert told.commands[-1] == [
        ".venv/bin/python", "-m", "fst_jax.train", "--config", CONFIG, "--seed", "1",
    ]  # fmt: skip


def test_a_gpu_box_with_sglang_beside_the_learner(launch: Launch) -> None:
    told = launch("gpu_box.sh", "--dry-run", *BOX, CONFIG, "--seed", "1")
    assert (told.code, told.err, told.calls) == (0, "", [])
    *_, first, second, train = told.commands
    served = ["launch/sglang_gpu.sh", "Qwen/Qwen3-8B", "--tp-size", "2"]
    assert first == ["env", "CUDA_VISIBLE_DEVICES=4,5", "PORT=30000", *served]
    assert second == ["env", "CUDA_VISIBLE_DEVICES=6,7", "PORT=30002", *served]
    assert train[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,1,2,3"]
    assert settings_of(train) == {
        "--config": CONFIG,
        "--model.path": "Qwen/Qwen3-8B",
        "--rollout.engine": "sglang",
        "--rollout.url": "http://127.0.0.1:30000,http://127.0.0.1:30002",
        "--seed": "1",
    }


def test_serving_scripts(launch: Launch) -> None:
    gpu = launch("sglang_gpu.sh", "--dry-run", "Qwen/Qwen3-8B", "--tp-size", "2")
    assert option(gpu.commands[-1], "--host") == "127.0.0.1"
    assert gpu.commands[-1][-3:] == ["--enable-deterministic-inference", "--tp-size", "2"]
    assert option(gpu.commands[-1], "--served-model-name") == "Qwen3-8B"
    tpu = launch("sglang_tpu.sh", "--dry-run", "Qwen/Qwen3-8B")
    assert option(tpu.commands[-1], "--model-path") == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tpu.sh", [], "missing --name --zone --type --share"),
        ("tpu.sh", [*TPU[:4], CONFIG], "missing --type --share"),
        ("tpu.sh", [*TPU], "which config?"),
        ("tpu.sh", ["--name"], "--name needs a value"),
        ("tpu.sh", [*TPU, "--reserved", CONFIG], "--spot and --reserved exclude each other"),
        (
            "tpu.sh",
            [*TPU, "--now", "--valid-until", "6h", CONFIG],
            "--valid-until is for the queue",
        ),
        ("tpu.sh", [*TPU, "--share", "gs://x", CONFIG], "--share gs://x: write HOST:/PATH"),
        ("tpu.sh", [*TPU, "--type", "tpu7x-16", CONFIG], "use launch/gke.sh"),
        ("tpu.sh", [*TPU, "nowhere.yaml"], "no config file nowhere.yaml"),
        ("tpu.sh", ["--train.steps", "3"], "no option --train.steps; settings come after CONFIG"),
        ("gke.sh", [*GKE[:4], CONFIG], "missing --type --image --storage --mount"),
        ("gke.sh", [*GKE], "which config?"),
        ("slurm.sh", [CONFIG], "missing --nodes --gpus-per-node --time"),
        (
            "slurm.sh",
            [*SLURM, "--partition", "gpu", CONFIG],
            "write --partition as --partition=VAL",
        ),
        ("slurm.sh", [*SLURM, "nowhere.yaml"], "no config file nowhere.yaml"),
        ("gpu_box.sh", [], "which config?"),
        ("gpu_box.sh", ["--server-gpus", "4", CONFIG], "missing --model"),
        ("gpu_box.sh", [*BOX, "--gpus", "4", CONFIG], "leaves the learner none of 4 GPUs"),
        ("gpu_box.sh", [*BOX, "--tp", "3", CONFIG], "divisible by --tp 3"),
        ("sglang_gpu.sh", [], "which model?"),
        ("sglang_tpu.sh", [], "which model?"),
    ],
)
def test_what_is_missing_or_wrong_is_one_message(
    name: str, arguments: list[str], message: str, launch: Launch
) -> None:
    told = launch(name, "--dry-run", *arguments)
    assert told.code == 2
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    assert message in told.err
    assert told.calls == []


@pytest.mark.parametrize(
    "name", ["tpu.sh", "gke.sh", "slurm.sh", "gpu_box.sh", "sglang_gpu.sh", "sglang_tpu.sh"]
)
def test_help_is_the_head_of_the_script(name: str, launch: Launch) -> None:
    told = launch(name, "--help")
    assert told.code == 0 and told.calls == []
    assert f"launch/{name} [--dry-run]" in told.out
    assert "set -euo" not in told.out
    if not name.startswith("sglang"):
        assert "\nCosts: " in told.out


def test_the_launchers_name_settings_that_exist() -> None:
    for script in LAUNCH.glob("*.sh"):
        for name in re.findall(r"--([a-z]+\.[a-z_]+)", script.read_text()):
            assert name in {*schema.settings(), "section.field"}, f"{script.name}: --{name}"
