"""Calls that wait for others (servers, scorers, a reflector), side by side in threads."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fst_jax.interrupt import check
from fst_jax.watchdog import beat

T = TypeVar("T")

_LOOK_S = 0.2  # between two looks whether the run is to stop


def side_by_side(calls: Iterable[Callable[[], T]], most: int) -> list[T]:
    """What the calls return, in their order; at most so many run at a time.

    When one of them raises, no other begins; its exception is raised when those under way have
    ended.  Interrupted is raised at once, and nobody is waited for: the threads end with the
    process, which is about to end.
    """
    waiting: queue.SimpleQueue[tuple[int, Callable[[], T]]] = queue.SimpleQueue()
    for place, call in enumerate(calls):
        waiting.put((place, call))
    count = waiting.qsize()
    ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    failed = threading.Event()

    def work() -> None:
        while not failed.is_set():
            try:
                place, call = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((place, call(), None))
            except BaseException as error:
                failed.set()
                ended.put((place, None, error))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(most, count))]
    for thread in threads:
        thread.start()
    results: dict[int, T] = {}
    while len(results) < count:
        try:
            place, result, error = ended.get(timeout=_LOOK_S)
        except queue.Empty:
            check()
            continue
        beat()
        if error is not None:
            for thread in threads:
                thread.join()
            raise error
        results[place] = result
    return [results[place] for place in range(count)]
