"""Runs of several processes, one for each host: how they find each other, and how they agree.

All processes run the same program on the same arrays, of which each holds the parts of its own
devices; every process calls every jitted function, in the same order.  What they decide on the
host follows from equal seeds and equal results.  What does not (scores under a time limit, answers
of other servers, what lies on a disk) process 0 decides alone and tells the others: `agreed`.
Process 0 alone writes files, but for checkpoints, of which each process writes its parts: the
run's folder must be one that all hosts see.
"""

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fst_jax.config import ParallelSettings
from fst_jax.errors import Interrupted, RunError, UserError
from fst_jax.shapes import bucket
from fst_jax.watchdog import elsewhere

T = TypeVar("T")


def start(settings: ParallelSettings) -> None:
    """Join the other processes of the run, before anything asks JAX for its devices.

    Does nothing without `parallel.coordinator`, or if the processes are joined already.

    Raises:
      RunError: they cannot be found in time.
    """
    if settings.coordinator is None or jax.distributed.is_initialized():
        return
    by_hand = settings.coordinator != "auto"
    try:
        jax.distributed.initialize(
            settings.coordinator if by_hand else None,
            settings.processes,
            settings.process,
            initialization_timeout=round(settings.start_timeout_s),
        )
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"the processes of parallel.coordinator = {settings.coordinator} did not come "
            f"together ({error}): start every one of them, or name host:port of process 0, "
            "parallel.processes and parallel.process"
        ) from error


def is_main() -> bool:
    """Whether this is process 0, which writes the files and talks to servers."""
    return jax.process_index() == 0


def agreed(decide: Callable[[], T]) -> T:
    """What `decide` returns in process 0, in all processes; also what it raises there, if that is
    a UserError or Interrupted.

    Other exceptions end process 0, and JAX's coordination service then ends the others.
    """
    if jax.process_count() == 1:
        return decide()
    if is_main():
        try:
            message = pickle.dumps((decide(), None))
        except (UserError, Interrupted) as error:
            message = pickle.dumps((None, error))
        value, raised = pickle.loads(_told(message))
    else:
        with elsewhere():
            value, raised = pickle.loads(_told(b""))
    if raised is not None:
        raise raised
    return value


@contextmanager
def leaving_together() -> Iterator[None]:
    """Where a UserError ends one of several processes, end it at once, with exit code 2.

    To leave in peace would take the others, which wait for it in some program; JAX's coordination
    service ends them when it is gone.
    """
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)


def any_of(flag: bool) -> bool:
    """Whether a flag is set in some process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def whole(x: jax.Array | np.ndarray) -> np.ndarray:
    """All of an array, on every host."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def _told(message: bytes) -> bytes:
    """Process 0's bytes; lengths come from a short list, since each compiles a program."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.zeros(bucket(size, quantum=1024, per_octave=1), np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size])
