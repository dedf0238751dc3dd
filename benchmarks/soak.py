"""Does a long run stay as it was?  Memory, file handles and compilations of one that goes on.

    .venv/bin/python benchmarks/soak.py --minutes 60      # Linux alone: it reads /proc

Trains the small world by FST, both halves on, with reuse, evaluations and checkpoints, for as many
minutes, in a process of its own that is looked at from outside: its resident memory (RSS, and PSS,
in which pages shared with others count in part), open file descriptors, threads and children, and
`compiles` of its newest step.  They are figures of that process alone: memory of its children, of
an accelerator and of the kernel's cache of files is not among them.

`<output>/soak.jsonl` has a line for each look, `<output>/train.log` what the run printed.  At the
end the run is stopped by SIGTERM, as it is when this command is interrupted, and four bars are
judged between two tenths of the time, the one after warm-up and the last:

- memory: the median RSS has grown by no more than 5 %;
- file handles: the fewest open at a time are no more (a leaked one stays, others come and go);
- compilations: no step since warm-up has compiled anything;
- the run: it made steps until the end, and then saved and ended with exit code 0.

Warm-up lasts a tenth of the time, or `--warm-up` minutes: until the first evaluations and
checkpoints (12 steps) are made, which takes minutes on two cores.

Exit code 0 if all hold, 1 if one does not.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TENTH = 0.1
MOST_GROWTH = 0.05  # of memory: the allocator's own ups and downs are within it
STOP_S = 300.0  # for the step at hand, and a checkpoint
TAIL = 1 << 17  # bytes at the end of metrics.jsonl that hold the newest step
ENDLESS = 1_000_000  # steps


def command(output: Path, seed: int) -> list[str]:
    """A run of FST on the small world that lasts until it is stopped."""
    settings = {
        "name": "run",
        "output": output,
        "seed": seed,
        "slow.enabled": "true",
        "fast.enabled": "true",
        "fast.reuse": "true",
        "train.steps": ENDLESS,
    }
    given = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    config = ROOT / "configs/small_world.yaml"
    return [sys.executable, "-m", "fst_jax.train", "--config", str(config), *given]


def look(process: int, metrics: Path) -> dict[str, Any]:
    """What Linux says of a process, and the run of its newest step.

    Raises:
      OSError: the process is no more.
    """
    proc = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    step = newest_step(metrics)
    return {
        "rss_mib": kibibytes(status["VmRSS"]) / 1024,
        "pss_mib": proportional_mib(proc),
        "files": len(list((proc / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "children": children(process),
        "step": step.get("step"),
        "compiles": step.get("compiles"),
    }


def kibibytes(value: str) -> int:
    """Of `   1234 kB`, as /proc writes it."""
    return int(value.split()[0])


def proportional_mib(proc: Path) -> float | None:
    """PSS, or None where the kernel does not tell."""
    try:
        lines = (proc / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    found = [line.split(":", 1)[1] for line in lines if line.startswith("Pss:")]
    return kibibytes(found[0]) / 1024 if found else None


def children(process: int) -> int:
    """Processes whose parent it is."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        count += int(parent) == process
    return count


def newest_step(metrics: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl that is a step's; empty if there is none yet."""
    if not metrics.exists():
        return {}
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL))
        lines = file.read().split(b"\n")[:-1]  # what follows the last line's end is not whole
    for line in reversed(lines):
        if line.startswith(b'{"event": "step"'):
            return dict(json.loads(line))
    return {}


def judge(
    looks: list[dict[str, Any]], minutes: float, warm_up: float, code: int | None
) -> dict[str, Any]:
    """The four bars, each with the figures that it was judged by; times in minutes."""
    tenth = minutes * TENTH

    def between(start: float, end: float) -> list[dict[str, Any]]:
        return [one for one in looks if 60 * start <= one["time_s"] < 60 * end]

    early, late = between(warm_up, warm_up + tenth), between(minutes - tenth, minutes + tenth)
    if not early or not late or early[0]["step"] is None:
        why = "no step was made in warm-up, or the run ended early (see train.log)"
        return {"holds": False, "why": why, "exit_code": code}

    def medians(name: str) -> tuple[float, float]:
        first, last = (statistics.median(one[name] for one in part) for part in (early, late))
        return first, last

    rss = medians("rss_mib")
    growth = rss[1] / rss[0] - 1
    files = [min(one["files"] for one in part) for part in (early, late)]
    compiles = [early[0]["compiles"], late[-1]["compiles"]]
    steps = [early[0]["step"], late[0]["step"], late[-1]["step"]]
    bars = {
        "memory": {
            "holds": growth <= MOST_GROWTH,
            "rss_mib": [round(value, 1) for value in rss],
            "growth": round(growth, 4),
        },
        "file_handles": {"holds": files[1] <= files[0], "fewest": files},
        "compilations": {"holds": compiles[0] == compiles[1], "compiles": compiles},
        "run": {
            "holds": steps[0] < steps[1] < steps[2] and code == 0,
            "steps": steps,
            "exit_code": code,
        },
    }
    return {"holds": all(bar["holds"] for bar in bars.values()), **bars}


def stop(child: subprocess.Popen[bytes]) -> int | None:
    """Ask the run to save and end; its exit code, or None where it had to be killed."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        return child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return None


def soak(minutes: float, warm_up: float, every_s: float, output: Path, seed: int) -> dict[str, Any]:
    """Let the run go on for so many minutes, look at it, stop it; the verdict."""
    output.mkdir(parents=True, exist_ok=True)
    metrics, looks = output / "run/metrics.jsonl", list[dict[str, Any]]()
    with open(output / "train.log", "ab") as log, open(output / "soak.jsonl", "w") as lines:
        began = time.monotonic()
        child = subprocess.Popen(  # in a session of its own: Ctrl-C is for this process
            command(output, seed), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while child.poll() is None and time.monotonic() - began < 60 * minutes:
                time.sleep(every_s)
                try:
                    found = look(child.pid, metrics)
                except (OSError, KeyError):  # it has just ended
                    continue
                looks.append({"time_s": round(time.monotonic() - began, 1), **found})
                lines.write(json.dumps(looks[-1]) + "\n")
                lines.flush()
                print(told(looks[-1]), flush=True)
        finally:
            code = stop(child)
    return judge(looks, minutes, warm_up, code)


def told(one: dict[str, Any]) -> str:
    pss = "?" if one["pss_mib"] is None else f"{one['pss_mib']:.1f}"
    return (
        f"{one['time_s'] / 60:7.1f} min  step {one['step']}  RSS {one['rss_mib']:.1f} MiB  "
        f"PSS {pss}  {one['files']} files  {one['threads']} threads  {one['children']} children  "
        f"{one['compiles']} compilations"
    )


def interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between looks (30)")
    parser.add_argument("--warm-up", type=float, help="minutes (default: a tenth of --minutes)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/soak"), help="folder, which must be new"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("this system has no /proc, from which the figures are read: use Linux")
    warm_up = options.minutes * TENTH if options.warm_up is None else options.warm_up
    if warm_up > options.minutes * (1 - 2 * TENTH):
        parser.error("--warm-up must leave two tenths of --minutes to compare")
    if 60 * options.minutes < 20 * options.every:
        parser.error("a tenth of the time must have two looks: raise --minutes or lower --every")
    if (options.output / "run").exists():
        parser.error(f"{options.output} holds a run already: choose another --output")
    signal.signal(signal.SIGTERM, interrupted)
    output = options.output.absolute()
    try:
        verdict = soak(options.minutes, warm_up, options.every, output, options.seed)
    except KeyboardInterrupt:
        print("interrupted, and the run with it: no verdict", file=sys.stderr)
        return 130
    (output / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n")
    print(json.dumps(verdict, indent=2))
    return 0 if verdict["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
