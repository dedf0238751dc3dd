"""Training that is killed, or asked to stop, at a drawn moment: in its n-th time in some phase.

    python -m tests.chaos.disturbed PHASE TIMES DELAY_S SIGNAL  arguments of fst_jax.train …

The signal comes from a thread of the process itself, so that it falls where it is meant to, however
long the process takes to start; SIGKILL is as final as from anywhere else.
"""

import os
import sys
import threading
from collections import Counter

from fst_jax import journal, train, watchdog
from fst_jax.settings import command


def main() -> int:
    phase, times, delay_s, signal, *arguments = sys.argv[1:]
    seen: Counter[str] = Counter()

    def told(name: str, step: int | None = None) -> None:
        watchdog.phase(name, step)
        seen[name] += 1
        if name == phase and seen[name] == int(times):
            end = threading.Timer(float(delay_s), os.kill, (os.getpid(), int(signal)))
            end.daemon = True
            end.start()

    train.phase = journal.phase = told
    sys.argv[1:] = arguments
    return command(train.main)


if __name__ == "__main__":
    sys.exit(main())
