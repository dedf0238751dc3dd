"""Everything a resumed run needs, saved as one step: sharded arrays and a JSON-able dict.

Orbax writes each step beside its final place and then renames it, so that a process killed at any
moment leaves the step before.  Saving goes on in the background; the arrays may be donated as
soon as `save` returns.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fst_jax.errors import RunError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save there

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    step: int
    arrays: Any
    host: dict[str, Any]


class Checkpoints:
    """The newest checkpoints of one run."""

    def __init__(self, folder: Path, keep: int):
        """Use `folder`, created at need, for the `keep` newest steps.

        Raises:
          RunError: the folder cannot be written.
        """
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        try:
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_names=("arrays", "host")
            )
        except OSError as error:
            raise RunError(f"cannot write checkpoints to {folder}: {error}") from error

    def save(self, step: int, arrays: Any, host: dict[str, Any]) -> None:
        """Start saving a pytree of arrays (parameters, optimiser state) and the host's state."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host)
            ),
        )

    def restore(self, like: Any) -> Saved | None:
        """The newest step that can be read, or None when there is none.

        `like` has the structure, shapes, dtypes and shardings to restore to: arrays or
        `jax.ShapeDtypeStruct`s.  A newer step that cannot be read is set aside as
        `<step>.damaged`.

        Raises:
          RunError: there are steps, and none of them can be read.
        """
        steps = sorted(self._manager.all_steps(read=True), reverse=True)
        failure: Exception | None = None
        damaged = []
        for step in steps:
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        arrays=ocp.args.StandardRestore(like), host=ocp.args.JsonRestore()
                    ),
                )
            except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
                failure = failure or error
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return Saved(step, found["arrays"], found["host"])
        if failure is not None:
            reason = (str(failure).splitlines() or [type(failure).__name__])[0]
            raise RunError(
                f"no checkpoint in {self._folder} can be read ({reason}): "
                "remove the run's folder, or start under another name"
            ) from failure
        return None

    def wait(self) -> None:
        """Return when the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and release the folder."""
        self.wait()
        self._manager.close()

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            _log.warning("checkpoint %s cannot be read; resuming from an older one", step)
            if jax.process_index() == 0:
                (self._folder / str(step)).rename(self._folder / f"{step}.damaged")
        if steps:
            self._manager.reload()
