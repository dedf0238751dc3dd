"""Ctrl-C, SIGTERM, SIGHUP and notices of maintenance: how a run is asked to stop, and when it must.

The first signal asks: the run ends its step and saves.  Clouds give a machine that they take back
some 30 seconds, and a step may take longer; so after `within_s` what is under way is left where it
is, `Interrupted` rises from the next `check`, and the state before the step is saved, from which
the step is taken again.  The same signal again ends the process at once.

`check` stands where work waits or loops for long and θ is untouched: between the chunks of the
sampler, while servers, scorers and the reflector are waited for.  An update of θ is never left.
"""

import signal
import sys
import threading
import time
from types import FrameType, TracebackType

from fst_jax.errors import Interrupted
from fst_jax.parallel.distributed import any_of

# The last is that of a terminal which is closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """While entered, `requested` becomes True at the first signal or call of `ask`."""

    _entered: "StopRequest | None" = None  # the one that `check` looks at

    def __init__(self, within_s: float | None = None) -> None:
        """After `within_s` seconds work is interrupted; None: it never is."""
        self.requested = False
        self._within_s = within_s
        self._since = 0.0
        self._previous: dict[int, object] = {}

    @property
    def overdue(self) -> bool:
        """Whether the time since the request is over."""
        late = self._within_s is not None and time.monotonic() - self._since > self._within_s
        return self.requested and late

    def ask(self, why: str) -> None:
        """Request a stop, and say so on stderr."""
        if not self.requested:
            self._since = time.monotonic()
            self.requested = True
            print(f"{why}: stopping after this step", file=sys.stderr, flush=True)

    def __enter__(self) -> "StopRequest":
        StopRequest._entered = self
        # Python hears signals in its main thread alone.
        heard = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
        for number in heard:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it for SIGHUP
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        StopRequest._entered = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.ask(f"{signal.Signals(number).name}; a second one stops at once")


def check(together: bool = False) -> None:
    """Raise Interrupted where a request to stop is overdue.

    With `together` every process of a run calls this at the same place, and all of them raise where
    one of them would; else process 0 alone does, inside of `agreed`, which tells the others.
    """
    stop = StopRequest._entered
    overdue = stop is not None and stop.overdue
    if any_of(overdue) if together else overdue:
        raise Interrupted
