"""Everything a resumed run needs, saved as one step: sharded arrays and a JSON-able dict.

Orbax writes each step beside its final place and then renames it, so that a process killed at any
moment leaves the step before.  Saving goes on in the background; the arrays may be donated as
soon as `save` returns.  What is restored is compared with checksums that were taken before it was
written, of every array and of the dict: a step that is not what was saved is passed over.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fst_jax.checksums import checksums
from fst_jax.config import CheckpointSettings
from fst_jax.errors import RunError
from fst_jax.parallel.distributed import agreed, any_of

for _name in ("absl", "asyncio"):  # Orbax and its tasks log what they raise, too, and every save
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_log = logging.getLogger(__name__)

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    step: int
    arrays: Any
    host: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: the newest, and those that are kept for good."""

    def __init__(self, folder: Path, settings: CheckpointSettings):
        """Use `folder`, created at need.

        Raises:
          RunError: the folder cannot be written.
        """
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=settings.keep,
            keep_period=settings.keep_every or None,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_names=("arrays", "host")
            )

    def save(self, step: int, arrays: Any, host: dict[str, Any]) -> None:
        """Start saving a pytree of arrays (parameters, optimiser state) and the host's state.

        Raises:
          RunError: the folder cannot be written, or could not at the save before.
        """
        sealed = {"host": host, "arrays": checksums(arrays)}
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        agreed(lambda: self._check_room(size))
        with self._writing():
            begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),
                    host=ocp.args.JsonSave(sealed | {"sha256": _sha256(sealed)}),
                ),
            )
            if not begun:
                raise ValueError(f"there is a later one than step {step}")

    def restore(self, like: Any) -> Saved | None:
        """The newest step that is as it was saved, or None when there is none.

        `like` has the structure, shapes, dtypes and shardings to restore to: arrays or
        `jax.ShapeDtypeStruct`s.  A newer step that is damaged is set aside as `<step>.damaged`.

        Raises:
          RunError: there are steps, and all of them are damaged.
        """
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        steps = sorted(self._manager.all_steps(read=True), reverse=True)
        failure: Exception | None = None
        damaged = []
        for step in steps:
            found: tuple[Any, dict[str, Any]] | None = None
            try:
                found = self._read(step, like)
            except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
                failure = failure or error
            if any_of(found is None):  # what one process sees is damage for all
                damaged.append(step)
                continue
            assert found is not None
            arrays, sealed = found
            if checksums(arrays) != sealed["arrays"]:
                failure = failure or ValueError("its arrays are not what was saved")
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return Saved(step, arrays, sealed["host"])
        if damaged:
            raise RunError(
                f"no checkpoint in {self._folder} can be read ({_reason(failure)}): "
                "remove the run's folder, or start under another name"
            ) from failure
        return None

    def wait(self) -> None:
        """Return when the last save is on disk.

        Raises:
          RunError: it could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and release the folder."""
        self.wait()
        self._manager.close()

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """This process's parts of the arrays, and the JSON; raises anything if they are damaged.

        The manager's own `restore` waits for the other processes, which may be reading another
        step already, since they saw no damage.
        """
        folder = self._folder / str(step)
        sealed = json.loads((folder / "host" / "metadata").read_text("utf-8"))
        if sealed.pop("sha256", None) != _sha256(sealed):
            raise ValueError("its host state is not what was saved")
        arrays = ocp.StandardCheckpointHandler().restore(
            folder / "arrays", args=ocp.args.StandardRestore(like)
        )
        return arrays, sealed

    def _check_room(self, size: int) -> None:
        """Refuse to begin what the disk cannot hold; compressed, it takes a little less."""
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise RunError(
                f"cannot write a checkpoint to {self._folder}: it takes up to {size / 1e6:.1f} MB "
                f"and the disk has {free / 1e6:.1f} ({os.strerror(errno.ENOSPC)}): make room; what "
                "was saved before can be resumed"
            )

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            _log.warning("checkpoint %s is damaged; resuming from an older one", step)
            agreed(partial(self._rename, step))
        if steps:
            self._manager.reload()

    def _rename(self, step: int) -> None:
        names = (f"{step}.damaged{end}" for end in ("", *(f".{i}" for i in range(1, 1000))))
        free = next(name for name in names if not (self._folder / name).exists())
        (self._folder / str(step)).rename(self._folder / free)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Any failure to write, of Orbax or TensorStore, as one message."""
        try:
            yield
        except Exception as error:
            raise RunError(
                f"cannot write checkpoints to {self._folder} ({_reason(error)}): make room or "
                "give access; what was saved before can be resumed"
            ) from error


def _reason(error: Exception | None) -> str:
    """What the system said, of all that Orbax and TensorStore say about it."""
    text = str(error)
    known = (os.strerror(code) for code in _OF_DISKS)
    first = (text.splitlines() or [type(error).__name__])[0][:300]
    return next((said for said in known if said in text), first)


def _in_thread(args: threading.ExceptHookArgs) -> None:
    """Keep to itself what Orbax's own threads raise, which `wait` and `save` raise again."""
    if not type(args.thread).__module__.startswith("orbax."):
        threading.__excepthook__(args)


threading.excepthook = _in_thread


def _sha256(sealed: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
