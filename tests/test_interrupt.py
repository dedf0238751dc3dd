"""Requests to stop: what the first signal does, what the second, and when time is up."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fst_jax.errors import Interrupted
from fst_jax.interrupt import StopRequest, check
from tests.processes import ROOT

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks(number, capsys):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest(within_s=60) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and not stop.overdue
        check()
        assert signal.getsignal(number) == signal.SIG_DFL
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert number.name in capsys.readouterr().err


def test_when_time_is_up_work_is_left():
    with StopRequest(within_s=0.05) as stop:
        check()
        stop.ask("the machine goes")
        check(together=True)
        time.sleep(0.06)
        assert stop.overdue
        for together in (False, True):
            with pytest.raises(Interrupted):
                check(together)
        try:
            with pytest.raises(Interrupted):
                check()
        except Exception as error:  # as tolerant code does it
            raise AssertionError("it was caught") from error
    check()  # nobody asks any more


def test_without_a_limit_work_is_never_left():
    with StopRequest() as stop:
        stop.ask("somebody")
        assert stop.requested and not stop.overdue
        check()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process(number):
    code = (
        "import os, time; from fst_jax.interrupt import StopRequest\n"
        f"with StopRequest(60):\n    os.kill(os.getpid(), {int(number)})\n"
        f"    print('asked', flush=True); os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "asked\n" and done.returncode == -number
