"""Disks that are full, read-only or gone: one clear message, and a run that can be taken up."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fst_jax.errors import RunError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make a RunError that names `path` of what the system says while it is written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write {path} ({reason}): make room or give access; what was saved before can "
            "be resumed"
        ) from error


def to_disk(path: Path) -> None:
    """Have what was written to a file on the disk.

    Raises:
      RunError: the disk has no room for it.
    """
    with writing(path), open(path, "rb") as file:
        os.fsync(file.fileno())
