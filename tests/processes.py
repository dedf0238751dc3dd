"""Several processes of one run, side by side on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def virtual_devices(count: int) -> dict[str, str]:
    """The environment of a process with `count` CPU devices.

    XLA has a thread a core, and one that waits for other devices is not free for them: with fewer
    threads than two for each device, a program with several collectives may wait for itself.
    """
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": str(max(4 * count, os.cpu_count() or 1)),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}",
    }


def run_together(
    arguments: Sequence[Sequence[object]], logs: Path, devices: int, timeout_s: float = 600
) -> list[str]:
    """Run `python ARGUMENTS` for each of `arguments`; returns what they printed.

    Each process has so many virtual CPU devices.  Fails unless all of them exit with 0.
    """
    environment = virtual_devices(devices)
    outputs = [logs / f"{index}.log" for index in range(len(arguments))]
    processes = []
    try:
        for own, output in zip(arguments, outputs, strict=True):
            processes.append(
                subprocess.Popen(
                    [sys.executable, *map(str, own)],
                    cwd=ROOT,
                    env=environment,
                    stdout=output.open("wb"),
                    stderr=subprocess.STDOUT,
                )
            )
        codes = [process.wait(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    printed = [output.read_text() for output in outputs]
    assert not any(codes), f"{codes}\n" + "\n".join(printed)
    return printed


def call(function: object, *arguments: object) -> list[object]:
    """The arguments of Python that call a module-level function with texts."""
    module, name = function.__module__, function.__name__  # type: ignore[attr-defined]
    code = f"import sys; from {module} import {name} as function; function(*sys.argv[1:])"
    return ["-c", code, *arguments]
