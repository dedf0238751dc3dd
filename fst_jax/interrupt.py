"""Ctrl-C and SIGTERM: the first asks the run to stop after this step, the second stops it."""

import signal
import sys
from types import FrameType, TracebackType


class StopRequest:
    """While entered, `requested` becomes True at the first signal."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)
        print(
            "stopping after this step; the same signal again stops at once",
            file=sys.stderr,
            flush=True,
        )
