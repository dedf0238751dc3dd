"""Where numbers go: metrics.jsonl, the console, TensorBoard and W&B, behind one Protocol.

metrics.jsonl is the record of a run: one JSON object a line, with `event`, `step` and `time_s`
first.  On resume it is cut back to where it was at the checkpoint, so that an interrupted run
leaves the same lines as an uninterrupted one.
"""

import contextlib
import importlib.util
import json
import math
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol, TextIO

from fst_jax.config import Config
from fst_jax.errors import ConfigError, RunError
from fst_jax.writing import writing

END = "end"  # the event of a run that has come to its end, its last


class Tracker(Protocol):
    """Takes the numbers of events, `step`, `evolve`, `eval`, `end`, and texts to be read."""

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Record `values` (numbers, text, and lists and dicts of them) of a step."""
        ...

    def show(self, name: str, step: int, texts: Sequence[str]) -> None:
        """Record texts of a step: `prompts`, those in use, the best first; or `rollouts/…`."""
        ...

    def close(self) -> None:
        """Write out what is still held."""
        ...


class JsonlTracker:
    """Appends to a file of JSON lines, each written out at once.

    NaN and infinities, which JSON does not have, are written as null.  `offset` and `elapsed_s`
    are the size of the file and the age of the run; a resumed run passes those of its checkpoint,
    and what was written later is cut off.
    """

    def __init__(self, path: Path, offset: int = 0, elapsed_s: float = 0.0):
        """Open `path`, cut to `offset` bytes.

        Raises:
          RunError: the file is shorter than `offset` or cannot be written.
        """
        self._start = time.monotonic() - elapsed_s
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115, closed by close()
            size = path.stat().st_size
            self._file.truncate(min(size, offset))
            self._file.seek(0, 2)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        if size < offset:
            self._file.close()
            raise RunError(
                f"{path} has {size} bytes, but had {offset} when the checkpoint was saved: "
                "restore the file, or start under another name"
            )

    @property
    def offset(self) -> int:
        """Bytes in the file so far."""
        return self._file.tell()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run started, pauses between its processes left out."""
        return time.monotonic() - self._start

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        head = {"event": event, "step": int(step), "time_s": round(self.elapsed_s, 3)}
        line = json.dumps(head | plain(values), ensure_ascii=False, allow_nan=False)
        with writing(Path(self._file.name)):
            left = memoryview(line.encode("utf-8") + b"\n")
            while left:  # a disk that fills up takes a part
                left = left[self._file.write(left) :]

    def show(self, name: str, step: int, texts: Sequence[str]) -> None:
        """Nothing: pool/ and samples/ have them."""

    def close(self) -> None:
        self._file.close()


class Pace:
    """How long a run will still take, by this process's steps but the first, which compiles."""

    def __init__(self, steps: int):
        """`steps` is the length of the whole run."""
        self._steps, self._since, self._seen = steps, 0.0, 0

    def left_s(self, step: int) -> float | None:
        """Seconds left when `step` has just ended; None while nothing is known."""
        now = time.monotonic()
        self._seen += 1
        if self._seen == 1:
            self._since = now
        left = max(self._steps - step, 0)
        if not left:
            return 0.0
        return None if self._seen == 1 else (now - self._since) / (self._seen - 1) * left


class ConsoleTracker:
    """Prints one line per event, with the time left after each step."""

    def __init__(self, steps: int, stream: TextIO | None = None):
        """`steps` is the length of the whole run."""
        self._steps = steps
        self._stream = stream or sys.stdout
        self._pace = Pace(steps)
        self._warned: set[str] = set()  # codes of the hints of the newest step

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        values = plain(values)
        if event == "step":
            parts = [f"step {step}/{self._steps}", *self._step(step, values)]
        elif event == "evolve":
            parts = [f"evolve {step}", *_evolve(values)]
        elif event == END:
            return
        elif event == "eval":
            parts = [f"eval {step}", *_eval(values)]
        else:
            parts = [f"{event} {step}", *(_item(*pair) for pair in numbers(values))]
        with contextlib.suppress(OSError, ValueError):  # who reads along may leave; the run goes on
            print("  ".join(part for part in parts if part), file=self._stream, flush=True)
        if event == "step":
            self._warn(values.get("warnings", []))

    def show(self, name: str, step: int, texts: Sequence[str]) -> None:
        """Nothing: lines are for numbers."""

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def _warn(self, warnings: Sequence[str]) -> None:
        """Print the hints that the step before did not have."""
        told = {warning.partition(":")[0]: warning for warning in warnings}
        for code, warning in told.items():
            if code not in self._warned:
                print(f"  warning: {warning}", file=self._stream, flush=True)
        self._warned = set(told)

    def _step(self, step: int, values: dict[str, Any]) -> Iterator[str]:
        left_s = self._pace.left_s(step)
        yield _item("reward", values.get("reward_mean"))
        yield _item("kl", values.get("kl_k3"))
        yield _item("distill kl", values.get("distill_kl"))
        yield _item("loss", values.get("loss"))
        yield _item("entropy", values.get("entropy"))
        speed = tokens_per_second(values)
        yield _item("tok/s", None if speed is None else round(speed))
        yield "" if left_s is None else f"eta {duration(left_s)}"


class TensorBoardTracker:
    """Writes every number as a scalar `event/name` for TensorBoard."""

    def __init__(self, folder: Path, first_step: int = 0):
        """Scalars of an earlier process from `first_step` on are hidden.

        Raises:
          ConfigError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ConfigError(_missing("tracking.tensorboard", "tensorboardX")) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        for name, value in numbers(plain(values)):
            self._writer.add_scalar(f"{_group(event, values)}/{name}", value, step)

    def show(self, name: str, step: int, texts: Sequence[str]) -> None:
        # Indented text is shown as it stands; what is not may be taken for Markdown.
        blocks = (textwrap.indent(text, "    ", lambda line: True) for text in texts)
        self._writer.add_text(name, "\n\n---\n\n".join(blocks), step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Sends every number as `event/name` to a W&B project; a resumed run goes on in its page."""

    def __init__(self, project: str, name: str, folder: Path, settings: dict[str, Any]):
        """`folder` keeps the id of the page, and W&B's own files.

        Raises:
          ConfigError: wandb is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(_missing("tracking.wandb_project", "wandb")) from error
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "page_id"
        self._html = wandb.Html
        self._run = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            config=settings,
            id=page.read_text() if page.exists() else None,
            resume="allow",
        )
        page.write_text(self._run.id)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        group = _group(event, values)
        scalars = {f"{group}/{name}": value for name, value in numbers(plain(values))}
        self._run.log(scalars, step=step)

    def show(self, name: str, step: int, texts: Sequence[str]) -> None:
        blocks = (f"<pre style='white-space: pre-wrap'>{escape(text)}</pre>" for text in texts)
        self._run.log({name: self._html("<hr>".join(blocks))}, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """Passes every event on to several trackers, in order."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = tuple(trackers)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(event, step, values)

    def show(self, name: str, step: int, texts: Sequence[str]) -> None:
        for tracker in self._trackers:
            tracker.show(name, step, texts)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def check_extras(config: Config) -> None:
    """Raise ConfigError if a tracker that `config.tracking` asks for is not installed."""
    asked = {
        "tensorboardX": ("tracking.tensorboard", config.tracking.tensorboard),
        "wandb": ("tracking.wandb_project", config.tracking.wandb_project is not None),
    }
    for package, (setting, wanted) in asked.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise ConfigError(_missing(setting, package))


def extra_trackers(
    config: Config, folder: Path, settings: dict[str, Any], first_step: int = 0
) -> list[Tracker]:
    """TensorBoard and W&B, as far as `config.tracking` asks for them.

    Raises:
      ConfigError: one of them is not installed.
    """
    trackers: list[Tracker] = []
    if config.tracking.tensorboard:
        trackers.append(TensorBoardTracker(folder / "tensorboard", first_step))
    if config.tracking.wandb_project is not None:
        project = config.tracking.wandb_project
        trackers.append(WandbTracker(project, config.name, folder / "wandb", settings))
    return trackers


def plain(value: Any) -> Any:
    """`value` in JSON's types: arrays and scalars of NumPy and JAX as Python numbers."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of plain values by its path, as `seconds/train`; lists are left out."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, value


def tokens_per_second(values: dict[str, Any]) -> float | None:
    """Tokens that a step generated over all its seconds; None where either is missing or 0."""
    seconds = sum((values.get("seconds") or {}).values())
    made = values.get("tokens_generated")
    return made / seconds if made and seconds else None


def duration(seconds: float) -> str:
    """Seconds as people say them: 42s, 3m10s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def _evolve(values: dict[str, Any]) -> Iterator[str]:
    yield _item("cycle", values.get("cycle"))
    pool = values.get("pool") or []
    yield _item("pool", len(pool))
    scores = [entry["mean_score"] for entry in pool if entry.get("mean_score") is not None]
    yield _item("best", max(scores, default=None))
    yield f"accepted {values.get('accepted', 0)} of {values.get('proposals', 0)}"
    yield _item("rollouts", values.get("metric_calls"))


def _eval(values: dict[str, Any]) -> Iterator[str]:
    k = values.get("k", "k")
    yield f"{values.get('task', '')} ({values.get('weights')} weights, {values.get('context')})"
    yield _item(f"mean@{k}", values.get("mean_at_k"))
    yield _item(f"best@{k}", values.get("best_at_k"))
    yield _item("kl", values.get("kl_to_base"))


def _item(name: str, value: float | None) -> str:
    """A name and a number, or nothing where the number is missing."""
    if value is None:
        return ""
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _group(event: str, values: dict[str, Any]) -> str:
    """The prefix of an event's scalars: evaluations of other tasks or contexts are apart."""
    keys = ("task", "weights", "context") if event == "eval" else ()
    apart = (str(values[key]) for key in keys if key in values)
    return "/".join([event, *apart])


def _missing(setting: str, package: str) -> str:
    return f"{setting} needs the package {package}: pip install 'fst_jax[track]', or unset it"
