"""The package without its repository: what it declares, what it holds, and how it is started."""

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fst_jax
from fst_jax import commands, shipped
from fst_jax.errors import ConfigError
from fst_jax.models.folder import load_config, resolve
from fst_jax.settings import load, load_file
from tests.helpers import tiny_model_folder

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fst_jax"
HEAVY = ("jax", "flax", "numpy", "transformers", "orbax", "matplotlib")
CONFIGS = sorted(path.relative_to(PACKAGE) for path in (PACKAGE / "configs").rglob("*.*"))


def python(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in a folder, with the package of this repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def declared() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def closure(requirements: list[str]) -> set[str]:
    """The names of all packages that installing the requirements brings, by installed metadata."""
    reached: set[str] = set()
    pending = [(Requirement(line), "") for line in requirements]
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        for wanted in ["", *requirement.extras]:
            if f"{name}[{wanted}]" not in reached:
                reached.add(f"{name}[{wanted}]")
                found = importlib.metadata.requires(name) or []
                pending += [(Requirement(line), wanted) for line in found]
    return {entry.partition("[")[0] for entry in reached}


def test_what_is_installed_holds_no_other_framework():
    names = closure(declared()["options"]["install_requires"].split("\n")[1:])
    assert {"jax", "transformers"} <= names
    assert not names & {"torch", "torchvision", "tensorflow", "tensorflow-cpu", "keras"}


def test_the_version_has_one_place():
    assert declared()["metadata"]["version"] == "attr: fst_jax.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fst_jax.__version__)
    elsewhere = [
        path
        for path in [*PACKAGE.rglob("*.py"), ROOT / "setup.cfg", ROOT / "pyproject.toml"]
        if "__version__ =" in path.read_text("utf-8")
    ]
    assert elsewhere == [PACKAGE / "__init__.py"]


def test_every_command_of_the_package_is_one_of_fst():
    assert declared()["options.entry_points"]["console_scripts"].split() == [
        "fst",
        "=",
        "fst_jax.commands:main",
    ]
    runnable = {
        path.stem for path in PACKAGE.glob("*.py") if "\nif __name__ ==" in path.read_text("utf-8")
    }
    assert set(commands.COMMANDS) == runnable | {"tasks"}
    listed = commands.help_text()
    assert all(f"  {name} " in listed for name in commands.COMMANDS)
    assert max(map(len, listed.splitlines())) <= 100


def test_fst_lists_its_commands_and_its_version(tmp_path):
    script = "import sys; from fst_jax.commands import main; sys.argv[0] = 'fst'; sys.exit(main())"
    told = python("-c", script, "--help", folder=tmp_path)
    assert (told.returncode, told.stdout) == (0, commands.help_text() + "\n")
    assert python("-c", script, folder=tmp_path).stdout == told.stdout
    told = python("-c", script, "--version", folder=tmp_path)
    assert told.stdout == f"fst_jax {fst_jax.__version__}\n"
    told = python("-c", script, "trian", folder=tmp_path)
    assert told.returncode == 2
    assert told.stderr == "error: no command trian; did you mean train? `fst --help` lists them\n"


@pytest.mark.parametrize("name", ["train", "evaluate", "plan", "sft"])
def test_help_is_answered_without_heavy_imports(name, tmp_path):
    script = (
        "import sys; from fst_jax.commands import main\n"
        "try:\n    main()\n"
        f"finally:\n    print([name for name in {HEAVY} if name in sys.modules])"
    )
    told = python("-c", script, name, "--help", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"usage: python -m fst_jax.{name} [--config FILE]")
    assert told.stdout.endswith("[]\n")
    as_module = python("-m", f"fst_jax.{name}", "--help", folder=tmp_path)
    assert as_module.stdout + "[]\n" == told.stdout


def test_the_repository_and_the_package_have_the_same_configs():
    assert (ROOT / "configs").samefile(PACKAGE / "configs")
    assert {path.suffix for path in CONFIGS} == {".yaml", ".json"}


def test_configs_come_from_the_package_where_there_are_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config, _ = load([], "train", "Train.")
    assert config.name == "quickstart"
    copy = PACKAGE / "configs/quickstart.yaml"
    assert capsys.readouterr().err == f"configs/quickstart.yaml is not here; using {copy}\n"
    assert load_file("configs/ci_tiny.yaml").name == "ci_tiny"
    architecture = load_config(resolve("configs/models/Qwen3-8B"))
    assert architecture.num_layers == 36


def test_what_is_here_comes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text("name: mine\n")
    assert load([], "train", "Train.")[0].name == "mine"
    assert capsys.readouterr().err == ""
    assert load_file("configs/ci_tiny.yaml").name == "ci_tiny"  # not there, so the package's


@pytest.mark.parametrize(
    "path",
    ["quickstart.yaml", "configs/other.yaml", "configs/../errors.py", "other/configs/x.yaml"],
)
def test_nothing_else_is_looked_for_in_the_package(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.found(Path(path)) == Path(path)
    assert shipped.found(tmp_path / path) == tmp_path / path
    with pytest.raises(ConfigError, match=f"cannot read the config file {re.escape(path)}"):
        load(["--config", path], "train", "Train.")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that `python -m build` makes from an sdist of what is to be packaged."""
    pytest.importorskip("build", reason="needs build: `make setup` installs it")
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, source / "fst_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = python("-m", "build", "--outdir", "dist", ".", folder=source)
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list((source / "dist").glob("fst_jax-*.tar.gz"))) == 1
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_data_and_declares_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        (points,) = (name for name in names if name.endswith("entry_points.txt"))
        needs = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
        assert "fst = fst_jax.commands:main" in archive.read(points).decode()
    data = [*CONFIGS, Path("py.typed"), Path("reporting/page.html.jinja")]
    data += [path.relative_to(PACKAGE) for path in shipped.MODELS["fst-tiny"].iterdir()]
    assert {f"fst_jax/{path}" for path in data} <= names
    assert {name.split("/")[0] for name in names} == {"fst_jax", Path(metadata).parts[0]}
    at_run_time = {Requirement(need).name for need in needs if "extra ==" not in need}
    assert not at_run_time & {"build", "setuptools", "wheel", "torch", "tensorflow", "pytest"}


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_folder(wheel, tmp_path):
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "--quiet",
         "--no-deps", "--no-index", "--disable-pip-version-check", wheel],
        check=True,
    )  # fmt: skip

    def fst(*arguments: object) -> str:
        told = subprocess.run(
            [environment / "bin/fst", *map(str, arguments)],
            cwd=empty,
            # The dependencies are this environment's; .pth files, and so this tree, are not read.
            env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert told.returncode == 0, told.stderr
        return told.stdout + told.stderr

    assert fst("--version") == f"fst_jax {fst_jax.__version__}\n"
    model = tiny_model_folder(tmp_path / "model")
    told = fst("train", "--config", "configs/ci_tiny.yaml", "--model.path", model, "--dry-run")
    (site,) = environment.glob("lib/python*/site-packages")
    assert f"using {site}/fst_jax/configs/ci_tiny.yaml" in told
    assert "name: ci_tiny" in told
    told = fst("train", "--config", "configs/small_world.yaml", "--dry-run")
    assert "path: fst-tiny" in told
    assert not list(empty.iterdir())
