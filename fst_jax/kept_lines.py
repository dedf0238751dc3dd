"""JSON lines that outlive the process: each is on disk when it counts, and whole or passed over.

A line ends with a checksum of the rest, so that what a kill or a bad disk left of it is no entry.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

from fst_jax.errors import RunError

_CHECKSUM = "crc32"


class KeptLines:
    """The entries of one file, in order."""

    def __init__(self, path: Path | None):
        """Use `path`, which need not exist; with None nothing outlives the process."""
        self._path = path
        self._torn = False  # whether the file's last line has no end

    def read(self) -> list[dict[str, Any]]:
        """The entries that are whole.

        Raises:
          RunError: the file is there and cannot be read.
        """
        if self._path is None or not self._path.exists():
            return []
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise RunError(f"cannot read {self._path}: {error.strerror}") from error
        self._torn = bool(data) and not data.endswith(b"\n")
        entries = (_entry(line) for line in data.split(b"\n"))
        return [entry for entry in entries if entry is not None]

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry; it is on disk when this returns.

        Raises:
          RunError: the file cannot be written.
        """
        if self._path is None:
            return
        line = json.dumps(entry | {_CHECKSUM: _checksum(entry)}).encode() + b"\n"
        try:
            with open(self._path, "ab") as file:
                file.write(b"\n" * self._torn + line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error
        self._torn = False

    def clear(self) -> None:
        """Remove all entries.

        Raises:
          RunError: the file cannot be written.
        """
        try:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove {self._path}: {error.strerror}") from error
        self._torn = False


def _checksum(entry: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry).encode())


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        if isinstance(entry, dict) and entry.pop(_CHECKSUM, None) == _checksum(entry):
            return entry
    except (ValueError, RecursionError):
        pass
    return None
