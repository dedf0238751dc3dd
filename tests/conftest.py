"""What all tests share: the CPU backend, checked shapes, and processes with virtual devices."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

from tests.processes import virtual_devices
from tests.tiny_run import finished, model, task  # noqa: F401, fixtures

ROOT = Path(__file__).parent.parent

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# Before jax is imported: the CPU, and programs compiled once for all tests and their processes.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache/compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tiny programs spend their time in the compiler, so XLA compiles without -O2.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Before any of these is imported: shapes and dtypes of arrays are checked at every call.  The
# other modules annotate no shapes, and checking them would only slow the tests down.
install_import_hook(
    [
        "fst_jax.models.attention",
        "fst_jax.models.decoder",
        "fst_jax.models.rope",
        "fst_jax.rollout.sampler",
        "fst_jax.rollout.slots",
        "fst_jax.slow",
    ],
    "beartype.beartype",
)


@pytest.fixture
def on_devices() -> Callable[..., None]:
    """Runs a module-level function in a fresh process with `count` virtual CPU devices.

    The number of devices is fixed when JAX starts, so it takes a process of its own.  The
    function's arguments travel as strings.
    """

    def run(function: Callable[..., None], *arguments: object, count: int = 8) -> None:
        code = f"import sys; from {function.__module__} import {function.__name__} as function; "
        done = subprocess.run(
            [sys.executable, "-c", code + "function(*sys.argv[1:])", *map(str, arguments)],
            cwd=ROOT,
            env=virtual_devices(count),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{function.__name__} failed:\n{done.stdout}{done.stderr}"

    return run
