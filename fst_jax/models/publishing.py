"""New folders take the place of old ones whole, so that no reader meets half a model."""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag of Linux's renameat2


@contextlib.contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well.

    If the block raises or the process dies, `folder` is as it was.  On Linux the two change places
    in one step, so that there is a complete `folder` at every moment; elsewhere it is away for an
    instant, and if the process dies in it, the next `publish` brings the old one back first.
    """
    folder = folder.absolute()
    partial, replaced = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    for leftover in (partial, replaced):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _to_disk(partial)
        if not folder.exists():
            partial.rename(folder)
        elif not _exchange(partial, folder):
            folder.rename(replaced)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Have every file of a folder on the disk before its name says that it is whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux, or an old C library
        return False
    return call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE) == 0
