"""The replies of a reflection model, kept with the run: nothing is asked twice.

A fast round that was killed starts again from the step's checkpoint and comes to
the same requests, since its random numbers are those of (seed, round).  Those that
were answered are found here, so that the round goes on as it would have, whatever
the model would say the second time.  A request is known by a hash of all of it,
seed included.  Requests that failed are not kept: they are asked again.

Each reply is on disk before its prompt is used.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fst_jax.kept_lines import KeptLines


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
        self._lines, self._lock = KeptLines(path), Lock()
        self._found: dict[str, Reply] = {}
        for entry in self._lines.read():
            with contextlib.suppress(TypeError, KeyError):  # nothing of ours
                request = entry.pop("request")
                self._found[request] = Reply(**entry)

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
            self._lines.add({"request": key, **asdict(reply)})


def _key(request: Mapping[str, Any]) -> str:
    text = json.dumps(request, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
