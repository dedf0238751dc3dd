"""Stands in for fst_jax.train: counts steps, can be stopped and resumed, notes what it was given.

Fails where the learning rate is "bad".  Every start adds a line to <output>/../starts.jsonl.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

STEP_S = 0.02

stopped = False


def stop(*_: object) -> None:
    global stopped
    stopped = True


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    folder = Path(given["--output"]) / given["--name"]
    steps = int(given["--train.steps"])
    saved = folder / "saved_step"
    step = int(saved.read_text()) if saved.exists() else 0
    note = {
        "name": given["--name"],
        "from": step,
        "model": given.get("--model.path"),
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "cache": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }
    with open(folder.parent.parent / "starts.jsonl", "a") as starts:
        starts.write(json.dumps(note) + "\n")
    if given.get("--slow.learning_rate") == "bad":
        print("error: slow.learning_rate: expected a number")
        return 2
    while step < steps and not stopped:
        step += 1
        print(f"step {step}/{steps}")
        time.sleep(STEP_S)
    folder.mkdir(parents=True, exist_ok=True)
    saved.write_text(str(step))
    with open(folder / "metrics.jsonl", "a") as file:
        event = "end" if step == steps else "step"
        file.write(json.dumps({"event": event, "step": step}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
