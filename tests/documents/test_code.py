"""The code in the documents is right: settings are settings, commands take what they are given,
examples run."""

import contextlib
import functools
import importlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from fst_jax import schema, shipped
from fst_jax.commands import COMMANDS
from fst_jax.settings import load, load_file
from tests.documents.blocks import (
    Block,
    all_blocks,
    commands,
    folder_of_examples,
    named_file,
)
from tests.processes import ROOT, free_port

# Programs of others, which would reach for a cloud, a cluster or a registry.
OUTSIDE = {"docker", "gcloud", "git", "kubectl", "sbatch", "squeue", "srun", "tfds", "xpk"}
SETTINGS = ("train", "evaluate", "plan", "sft")  # commands that take any setting
ENVIRONMENT = re.compile(r"[A-Z_]+=\S*")
BLOCKS = all_blocks()
COMMAND_LINES = [found for block in BLOCKS for found in commands(block)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
YAML = [block for block in BLOCKS if block.language == "yaml"]
# One that asks a service of its own is tried with it, in test_docs_reward_server.py.
TASKS = [b for b in PYTHON if "def problems" in b.text and "httpx" not in b.text]
SERVED = [block for block in PYTHON if "openai" in block.text]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_examples(tmp_path_factory.mktemp("examples"))


def ids(found: list[Block]) -> list[str]:
    return [block.place for block in found]


def test_there_is_code_to_look_at() -> None:
    assert len(COMMAND_LINES) > 60 and len(PYTHON) > 5 and len(YAML) > 5 and len(TASKS) >= 2


@pytest.mark.parametrize("block", YAML, ids=ids(YAML))
def test_settings(block: Block, tmp_path: Path) -> None:
    found = yaml.safe_load(block.text)
    if isinstance(found, dict) and set(found) & {*schema.sections(), *schema.settings()}:
        path = tmp_path / "config.yaml"
        path.write_text(block.text, encoding="utf-8")
        load_file(path)


@pytest.mark.parametrize(("place", "words"), COMMAND_LINES, ids=[p for p, _ in COMMAND_LINES])
def test_commands(place: str, words: list[str], examples: Path, monkeypatch) -> None:
    while ENVIRONMENT.fullmatch(words[0]):
        words = words[1:]
    if words[0] == "srun":
        words = words[next(i for i, word in enumerate(words) if word.endswith("python")) :]
    program = words[0].removeprefix(".venv/bin/")
    if program in OUTSIDE or program in ("cd", "curl", "watch", "tensorboard", "source"):
        return
    if program == "fst":
        program, words = "python", ["python", "-m", f"fst_jax.{words[1]}", *words[2:]]
    if program == "make":
        made = [word for word in words[1:] if "=" not in word]
        done = subprocess.run(["make", "-n", *made], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program in ("pip", "python3") or program.endswith("/pip"):
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= extras_of_package(), (place, extras)
    elif program.startswith("launch/"):
        assert_flags(words[1:], (ROOT / program).read_text(encoding="utf-8"), place)
    elif program == "python" and words[1] == "-m" and words[2].startswith("fst_jax."):
        monkeypatch.chdir(examples)
        module = words[2].removeprefix("fst_jax.")
        assert module in COMMANDS or module.startswith("small_world."), place
        if module in SETTINGS:
            home = importlib.import_module(f"fst_jax.{module}")
            flags, options = (getattr(home, name, {}) for name in ("FLAGS", "OPTIONS"))
            given = [config_of(word) for word in words[3:] if word != "…"]
            if "--section.field" in given:  # how settings are given, not one
                return
            load(given, module, "", flags=flags, options=options)
        else:
            subcommand = words[3] if module == "tasks" else None
            assert_flags(words[3:], help_of(module, subcommand), place)
    elif program == "python" and words[1].startswith("benchmarks/"):
        assert_flags(words[2:], (ROOT / words[1]).read_text(encoding="utf-8"), place)
    elif program == "python" and (examples / words[1]).is_file():
        return
    elif program == "python" and words[1:3] in (["-m", "build"], ["-m", "pip"], ["-m", "pytest"]):
        return
    else:
        pytest.fail(f"{place}: say here how {' '.join(words)} is looked over")


def config_of(word: str) -> str:
    """A config that is here, for one of which a document speaks."""
    stands_for = word in ("FILE", "CONFIG") or word.startswith("runs/")
    there = Path(word).exists() or shipped.found(Path(word)).exists()
    return "configs/quickstart.yaml" if stands_for and not there else word


def assert_flags(words: list[str], known: str, place: str) -> None:
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and schema.owner(flag.removeprefix("--")) is None:
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", known), f"{place}: {flag}"


@functools.cache
def help_of(module: str, subcommand: str | None) -> str:
    """What `python -m fst_jax.<module> --help` prints, asked for in this process."""
    home = importlib.import_module(f"fst_jax.{module}" + (".__main__" if module == "tasks" else ""))
    with contextlib.redirect_stdout(io.StringIO()) as told, pytest.raises(SystemExit) as end:
        home.main([*filter(None, [subcommand]), "--help"])
    assert not end.value.code
    return told.getvalue()


def extras_of_package() -> set[str]:
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    section = text.split("[options.extras_require]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) =", section, re.MULTILINE))


@pytest.mark.parametrize("block", PYTHON, ids=ids(PYTHON))
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec")


@pytest.mark.parametrize("block", TASKS, ids=ids(TASKS))
def test_tasks_hold_what_they_promise(block: Block, examples: Path) -> None:
    name = named_file(block, "py")
    assert name, f"{block.place}: the text before it does not say which file it is"
    done = subprocess.run(
        [sys.executable, "-m", "fst_jax.tasks", "check", name],
        cwd=examples, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


ALONE = [block for block in PYTHON if block not in TASKS + SERVED and not named_file(block, "py")]
DOCUMENTS_ALONE = sorted({block.document for block in ALONE})


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS_ALONE)
def test_python_runs(document: str, tmp_path: Path) -> None:
    """The blocks of a document one after the other, in an empty folder."""
    text = "\n".join(block.text for block in ALONE if block.document == document)
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a server of the small world's model."""
    port = free_port()
    asked = [sys.executable, "-m", "fst_jax.serve", "--model", "fst-tiny", "--port", str(port)]
    process = subprocess.Popen(asked, cwd=ROOT, env=environment())
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("block", SERVED, ids=ids(SERVED))
def test_clients_of_the_server(block: Block, server: int, tmp_path: Path) -> None:
    text = block.text.replace("30000", str(server))
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


CURLS = [(place, words) for place, words in COMMAND_LINES if words[0] == "curl"]


@pytest.mark.parametrize(("place", "words"), CURLS, ids=[place for place, _ in CURLS])
def test_requests_by_curl(place: str, words: list[str], server: int) -> None:
    asked = [word.replace("30000", str(server)) for word in words]
    done = subprocess.run([*asked, "--silent", "--fail"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, (place, done.stderr)


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
