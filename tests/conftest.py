"""What all tests share: the CPU backend, and processes with several virtual devices."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Before jax is imported: the CPU, and programs compiled once for all tests and their processes.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache/compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture
def on_devices() -> Callable[..., None]:
    """Runs a module-level function in a fresh process with `count` virtual CPU devices.

    The number of devices is fixed when JAX starts, so it takes a process of its own.  The
    function's arguments travel as strings.
    """

    def run(function: Callable[..., None], *arguments: object, count: int = 8) -> None:
        code = f"import sys; from {function.__module__} import {function.__name__} as function; "
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        }
        done = subprocess.run(
            [sys.executable, "-c", code + "function(*sys.argv[1:])", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{function.__name__} failed:\n{done.stdout}{done.stderr}"

    return run
