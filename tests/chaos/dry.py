"""`python -m fst_jax.train --dry-run` in this process, and what must hold whatever it is given."""

import contextlib
import io
import sys
from pathlib import Path
from unittest import mock

import huggingface_hub

from fst_jax.settings import command
from fst_jax.train import main


def _offline(*_: object, **__: object) -> str:
    raise ConnectionError("tests do not ask the hub")


def dry_run(arguments: list[str], output: Path) -> tuple[int, str]:
    """(exit code, stderr) of a dry run whose runs would lie in `output`.

    Fails unless it ends with 0 and no complaint, or with 2 and one message, and leaves nothing
    behind.
    """
    told, said = io.StringIO(), io.StringIO()
    argv = ["train", "--dry-run", "--output", str(output), *arguments]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(huggingface_hub, "snapshot_download", _offline),
        contextlib.redirect_stderr(told),
        contextlib.redirect_stdout(said),
    ):
        code = command(main)
    error = told.getvalue()
    assert code in (0, 2), code
    assert "Traceback" not in error
    if code == 2:
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and len(lines[0]) > len("error: "), error
        assert len(error) < 20_000, "a message, not the input once more"
    else:
        assert said.getvalue() and not error, error
    assert not output.exists() or not any(output.iterdir()), "nothing is left behind"
    return code, error
