"""The embedded server in a process of its own, and the schemas of SGLang's wheel."""

import ast
import contextlib
import importlib.util
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "models/.wheels"
SGLANG = "0.5.23"


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def serving(model: Path, *more: object, port: int = 0) -> Iterator[Served]:
    """`python -m fst_jax.serve` on a free port; killed at the end if it still runs."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "fst_jax.serve", "--model", str(model), "--port", str(port),
            *map(str, more),
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            found = re.search(r"serving \S+ at (\S+)", line)
            if found:
                break
        else:
            raise AssertionError("the server did not start:\n" + "".join(lines))
        yield Served(process, found[1])
    finally:
        process.kill()
        process.wait()


def wait_until(client: httpx.Client, running: int, waiting: int = 0) -> None:
    for _ in range(600):
        (state,) = client.get("/server_info").json()["internal_states"]
        if (state["running"], state["waiting"]) == (running, waiting):
            return
        time.sleep(0.05)
    raise AssertionError(f"never {running} running and {waiting} waiting: {state}")


def _from_wheel(name: str) -> bytes:
    wheels = sorted(WHEELS.glob(f"sglang-{SGLANG}-*.whl"))
    if not wheels:
        pytest.skip(
            f"SGLANG {SGLANG} IS NOT HERE: `make test` fetches its wheel, to compare its schemas"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return wheel.read(name)


def api_types(folder: Path) -> ModuleType:
    """SGLang's own request and response types, which need msgspec alone."""
    path = folder / "api_types.py"
    path.write_bytes(_from_wheel("sglang/api/v1/api_types.py"))
    spec = importlib.util.spec_from_file_location("sglang_api_types", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its forward references are resolved there
    spec.loader.exec_module(module)
    return module


def control_fields(name: str) -> set[str]:
    """Names of the fields of a request in SGLang's io_struct.py, which is read, not imported."""
    tree = ast.parse(_from_wheel("sglang/srt/managers/io_struct.py"))
    (found,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    return {n.target.id for n in found.body if isinstance(n, ast.AnnAssign)}
