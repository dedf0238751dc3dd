"""What a terminal shows of a run: lines as they come, and below them where it stands.

In a terminal the last rows are a display that lives: the phase and how long it has lasted, steps
done and the time left, the newest reward, KL and speed, programs compiled, the best prompt.  Where
the output is a file or a pipe there are the lines alone.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from fst_jax.compiles import compiles
from fst_jax.fast.pool import Prompt
from fst_jax.tracking import (
    END,
    ConsoleTracker,
    Pace,
    Tracker,
    duration,
    plain,
    tokens_per_second,
)
from fst_jax.watchdog import doing

CONTEXTS = {"none": "no prompt", "seed": "seed prompt", "pool": "evolved prompts"}
PROMPT_LINES = 4
_FRAMES_A_SECOND = 4
_DOES = {
    "start": "starting",
    "load": "loading weights",
    "sync": "serving the new weights",
    "evolve": "evolving prompts",
    "rollout": "sampling rollouts",
    "train": "updating the weights",
    "evaluate": "evaluating on held-out problems",
    "checkpoint": "saving",
    "between steps": "between two steps",
}


def console(steps: int) -> Tracker:
    """What shows a run of so many steps on the standard output."""
    return Display(steps) if Console().is_terminal else ConsoleTracker(steps)


class Display:
    """A live display in the last rows of a terminal; what is printed meanwhile goes above it."""

    def __init__(self, steps: int, terminal: Console | None = None):
        """`steps` is the length of the whole run; `terminal` is the process's own if not given."""
        self._steps, self._step, self._pace = steps, 0, Pace(steps)
        self._left_s: float | None = None
        self._numbers: dict[str, str] = {}
        self._prompt, self._scores = "", dict[str, float]()
        self._live = Live(
            get_renderable=self.rendered,
            console=terminal or Console(),
            refresh_per_second=_FRAMES_A_SECOND,
            transient=True,
        )
        self._live.start()
        # Written above the display: rich has put its own file in the place of sys.stdout.
        self._lines = ConsoleTracker(steps, sys.stdout)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        values = plain(values)
        if event == "step":
            self._take_step(step, values)
        elif event == "evolve":
            self._scores = {e["id"]: e["mean_score"] for e in values.get("pool") or []}
        elif event == "eval" and values.get("mean_at_k") is not None:
            under = CONTEXTS.get(values.get("context", ""), "")
            found = f"mean@{values.get('k')} {values['mean_at_k']:.3f} (step {step})"
            self._numbers[f"held out, {under}"] = found
        elif event == END:
            self._left_s = 0.0
        self._lines.log(event, step, values)

    def show(self, name: str, step: int, texts: Sequence[str]) -> None:
        if name == "prompts" and texts:
            self._prompt = texts[0]

    def close(self) -> None:
        self._live.stop()

    def _take_step(self, step: int, values: dict[str, Any]) -> None:
        self._step, self._left_s = step, self._pace.left_s(step)
        found = {
            "reward": (values.get("reward_mean"), "{:.3f}"),
            "KL to reference": (values.get("kl_k3"), "{:.4f} nats/token"),
            "entropy": (values.get("entropy"), "{:.3f} nats/token"),
            "speed": (tokens_per_second(values), "{:.0f} tokens/s"),
        }
        for name, (value, form) in found.items():
            if value is not None:
                self._numbers[name] = form.format(value)

    def rendered(self) -> RenderableType:
        """The display as it is now."""
        now, rows = doing(), Table.grid(padding=(0, 2))
        rows.add_column(style="dim")
        rows.add_column(overflow="fold")
        lasted = duration(time.monotonic() - now.began)
        rows.add_row("phase", f"{_DOES.get(now.phase, now.phase)}, {lasted}")
        done = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._steps, 1), completed=self._step, width=24)
        left = "" if self._left_s is None else f"{duration(self._left_s)} left"
        done.add_row(bar, f"{self._step} of {self._steps}", left)
        rows.add_row("steps", done)
        for name, text in self._numbers.items():
            rows.add_row(name, text)
        rows.add_row("programs", f"{compiles()} compiled")
        parts: list[RenderableType] = [Rule(style="dim"), rows]
        if self._prompt:
            found = self._scores.get(Prompt(self._prompt).id)
            score = "" if found is None else f", {found:.2f} on its anchors"
            shown = Text(_first_lines(self._prompt), overflow="fold")
            parts.append(Panel(shown, title=f"best prompt{score}", title_align="left"))
        return Group(*parts)


def _first_lines(text: str) -> str:
    lines = text.splitlines()
    more = len(lines) - PROMPT_LINES
    return "\n".join(lines[:PROMPT_LINES]) + (f"\n… and {more} more lines" if more > 0 else "")
