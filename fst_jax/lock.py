"""One process at a time in a folder.

The lock is the kernel's (`flock`), so that nothing is left locked by a process that was killed.
File systems that hosts share may keep such locks to each host; there the heartbeat of a run, which
the file names the host of, tells whether it is alive.
"""

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from fst_jax.errors import RunError
from fst_jax.watchdog import HEARTBEAT

LOCK = "lock"  # the file
_FRESH_S = 60.0  # a heartbeat is written every five seconds
_LOOK_S = 0.5


class Lock:
    """A folder that this process has for itself, until `release` or its end."""

    def __init__(self, folder: Path):
        """Take the folder, whose file `lock` says by whom it is used.

        Raises:
          RunError: another process uses it, named by its host and id; or it cannot be written.
        """
        path = folder / LOCK
        try:
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, closed by release()
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._refusal(folder) from error
        if self._elsewhere(folder):
            raise self._refusal(folder)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": round(time.time())}
        self._file.truncate(0)
        self._file.write(json.dumps(owner) + "\n")
        self._file.flush()

    def release(self) -> None:
        """Let others use the folder."""
        self._file.truncate(0)
        self._file.close()

    def _owner(self) -> dict[str, object]:
        self._file.seek(0)
        try:
            owner = json.loads(self._file.read() or "{}")
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def _elsewhere(self, folder: Path) -> bool:
        """Whether a process of another host, which the kernel may not know of, is at work here.

        Its heartbeat moves.  A fresh one that does not is of a process that was killed, such as the
        container in whose place this one is.
        """
        if self._owner().get("host") in (None, socket.gethostname()):
            return False
        first = _written(folder)
        while first is not None and time.time() - first < _FRESH_S:
            time.sleep(_LOOK_S)
            if _written(folder) != first:
                return True
        return False

    def _refusal(self, folder: Path) -> RunError:
        owner = self._owner()
        self._file.close()
        who = f"process {owner.get('pid', '?')} on {owner.get('host', 'this host')}"
        return RunError(
            f"{folder} is in use by {who}: wait for it, stop it, or choose another --name"
        )


def _written(folder: Path) -> float | None:
    """When the heartbeat in a folder was written, if there is one."""
    try:
        return (folder / HEARTBEAT).stat().st_mtime
    except OSError:
        return None
