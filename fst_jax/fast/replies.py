"""The replies of a reflection model, kept with the run: nothing is asked twice.

A fast round that was killed starts again from the step's checkpoint and comes to
the same requests, since its random numbers are those of (seed, round).  Those that
were answered are found here, so that the round goes on as it would have, whatever
the model would say the second time.  A request is known by a hash of all of it,
seed included.  Requests that failed are not kept: they are asked again.

The file is JSON lines, one a reply, each on disk before its prompt is used.  What
a kill left of a line is passed over.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fst_jax.errors import RunError


@dataclass(frozen=True)
class Reply:
    """What a model answered, and what it took."""

    content: str
    finish_reason: str | None
    calls: int  # requests, those that failed before it included
    prompt_tokens: int
    completion_tokens: int


class Replies:
    """Replies by request; safe to use from several threads."""

    def __init__(self, path: Path | None):
        """Read what `path` holds; with None nothing outlives the process.

        Raises:
          RunError: the file is there and cannot be read.
        """
        self._path, self._lock = path, Lock()
        self._found: dict[str, Reply] = {}
        self._torn = False  # whether the file's last line has no end
        if path is not None and path.exists():
            try:
                data = path.read_bytes()
            except OSError as error:
                raise RunError(f"cannot read {path}: {error.strerror}") from error
            self._torn = bool(data) and not data.endswith(b"\n")
            for line in data.split(b"\n"):
                self._read(line)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, request: Mapping[str, Any]) -> Reply | None:
        """The reply to this very request, if there was one."""
        return self._found.get(_key(request))

    def keep(self, request: Mapping[str, Any], reply: Reply) -> None:
        """Remember a reply; it is on disk when this returns.

        Raises:
          RunError: the file cannot be written.
        """
        key = _key(request)
        with self._lock:
            self._found[key] = reply
            if self._path is None:
                return
            line = json.dumps({"request": key, **asdict(reply)}) + "\n"
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write("\n" * self._torn + line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise RunError(f"cannot write {self._path}: {error.strerror}") from error
            self._torn = False

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            reply = Reply(
                content=entry["content"],
                finish_reason=entry["finish_reason"],
                calls=int(entry["calls"]),
                prompt_tokens=int(entry["prompt_tokens"]),
                completion_tokens=int(entry["completion_tokens"]),
            )
            if isinstance(reply.content, str):
                self._found[str(entry["request"])] = reply
        except (ValueError, KeyError, TypeError, OverflowError):
            return  # torn by a kill, or nothing of ours


def _key(request: Mapping[str, Any]) -> str:
    text = json.dumps(request, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
