"""Calls side by side: their order, the first that fails, and a run that is to stop."""

import threading
import time
from functools import partial

import pytest

from fst_jax import threads
from fst_jax.errors import Interrupted
from fst_jax.interrupt import StopRequest
from fst_jax.threads import side_by_side


def test_results_come_in_order_and_no_more_run_than_may():
    running, most = [], []

    def call(i: int) -> int:
        running.append(i)
        most.append(len(running))
        time.sleep(0.01 * (5 - i % 5))
        running.remove(i)
        return i * i

    assert side_by_side([partial(call, i) for i in range(20)], 4) == [i * i for i in range(20)]
    assert 1 < max(most) <= 4
    assert side_by_side([], 4) == []


def test_after_a_failure_nothing_begins_and_what_is_under_way_ends():
    begun, ended = [], []

    def call(i: int) -> None:
        begun.append(i)
        if i == 1:
            raise ZeroDivisionError("oops")
        time.sleep(0.1)
        ended.append(i)

    with pytest.raises(ZeroDivisionError, match="oops"):
        side_by_side([partial(call, i) for i in range(50)], 2)
    assert len(begun) < 5 and set(ended) == set(begun) - {1}


def test_nobody_is_waited_for_when_the_run_is_to_stop():
    release = threading.Event()
    with StopRequest(within_s=0.0) as stop:
        stop.ask("the test")
        began = time.monotonic()
        with pytest.raises(Interrupted):
            side_by_side([release.wait] * 2, 2)
        assert time.monotonic() - began < 10 * threads._LOOK_S
    release.set()
