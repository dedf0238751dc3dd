"""What a terminal shows: the live display, and lines alone where there is no terminal."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from fst_jax.display import Display, console
from fst_jax.fast.pool import Prompt
from fst_jax.tracking import ConsoleTracker
from fst_jax.watchdog import phase
from tests.processes import ROOT

PROMPT = "Answer in one word.\nDo not explain.\n" + "\n".join(f"Rule {n}." for n in range(5))
SECONDS = {"rollout": 1.0, "train": 1.0}
STEP = {"reward_mean": 0.41, "kl_k3": 0.0012, "entropy": 1.5, "tokens_generated": 1624}


def played(width: int) -> tuple[Display, Console]:
    """A display that has seen a fast round, two steps and an evaluation."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    display = Display(20, terminal)
    phase("rollout", 3)
    pool = [{"id": Prompt(PROMPT).id, "mean_score": 0.25}, {"id": "other", "mean_score": None}]
    display.log("evolve", 2, {"cycle": 1, "proposals": 4, "accepted": 1, "pool": pool})
    display.show("prompts", 2, [PROMPT, "Answer."])
    display.show("rollouts/step", 2, ["not a prompt"])
    for step in (3, 4):
        display.log("step", step, {**STEP, "seconds": SECONDS})
    display.log("eval", 4, {"mean_at_k": 0.5, "k": 4, "context": "pool"})
    return display, terminal


@pytest.mark.parametrize("width", [60, 100])
def test_the_display_says_where_the_run_stands(width):
    display, _ = played(width)
    display.close()
    page = Console(file=io.StringIO(), width=width, color_system=None)
    page.print(display.rendered())
    shown = page.file.getvalue()
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    told = {" ".join(line.split()) for line in lines}
    assert any(re.fullmatch(r"phase sampling rollouts, \d+s", line) for line in told)
    assert "reward 0.410" in told and "entropy 1.500 nats/token" in told
    assert "KL to reference 0.0012 nats/token" in told and "speed 812 tokens/s" in told
    assert "held out, evolved prompts mean@4 0.500 (step 4)" in told
    assert any(line.startswith("programs") and "compiled" in line for line in told)
    assert any("4 of 20" in line and "left" in line for line in told)
    assert "best prompt, 0.25 on its anchors" in shown
    assert "Answer in one word." in shown and "and 3 more lines" in shown and "Rule 4" not in shown


def test_lines_stay_above_the_display():
    display, terminal = played(100)
    display.close()
    written = terminal.file.getvalue()
    assert re.search(r"step 4/20 +reward 0.41 .*\n", written)
    assert written.index("evolve 2  cycle 1") < written.index("step 3/20") < written.index("eval 4")


def test_a_pipe_gets_lines_alone():
    assert isinstance(console(3), ConsoleTracker)


def test_in_a_terminal_there_is_a_display():
    code = (
        "from fst_jax.display import console\n"
        "shown = console(3)\n"
        "print('above', type(shown).__name__, flush=True)\n"
        "shown.log('step', 1, {'reward_mean': 0.5})\n"
        "shown.close()\n"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=theirs, timeout=120
    )
    os.close(theirs)
    written = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "above Display" in written and "step 1/3  reward 0.5" in written
    assert written.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in written  # the cursor is back
