"""What scoring costs: 256 answers of every built-in task, judged as a run judges them.

    python benchmarks/scoring.py
    python benchmarks/scoring.py hover --pages 300000

Answers are as long as the paper's longest (some 8,000 tokens: up to 30,000 characters of thinking;
the small world's 120) and end in the right answer, another problem's, or none, a third each.
`first` is the first batch, for which worker processes are started; `next` the median of three more,
with answers that no cache has seen.  A step is 60 s, the paper's on eight H100; 3 s for the small
world's tasks, whose step of 128 rollouts takes 1.5 s on one core.  `--pages` searches that many
pages of random words as well as the sample's.  `tfds` scores as `jsonl`, `stream` as its stages.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fst_jax.config import TaskSettings
from fst_jax.tasks.fuzz import forms
from fst_jax.tasks.hover_import import import_hover
from fst_jax.tasks.hover_sample import write_sample
from fst_jax.tasks.judge import judge_all
from fst_jax.tasks.pages import build
from fst_jax.tasks.registry import load_task
from fst_jax.tasks.task import Problem, Task

BATCH = 256
CHARACTERS, TINY_CHARACTERS = 30_000, 120
STEP_S, TINY_STEP_S = 60.0, 3.0
THOUGHT = "Let me look at this once more: if x is 3, then f(x) = {x + 1}, so we go on. "
FORMS = {"math": "boxed", "star_graph": "boxed", "hover": "fenced", "jsonl": "boxed"}
SIZES = {"train_size": 400, "test_size": 8}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", help="names (default: all)")
    parser.add_argument("--pages", type=int, default=0, help="pages of random words for hover")
    options = parser.parse_args(arguments)
    print(f"{'task':18}{'first s':>9}{'next s':>9}{'ms each':>9}{'% of step':>11}")
    with tempfile.TemporaryDirectory() as folder:
        every = settings(Path(folder), options.pages)
        for name in options.tasks or every:
            measure(name, load_task(every[name]()))


def measure(name: str, task: Task) -> None:
    """Print a line."""
    train = task.problems("train")
    problems = [train[i] for i in range(min(len(train), 4 * BATCH))]
    tiny, seconds = name.startswith("tiny_"), []
    characters = TINY_CHARACTERS if tiny else CHARACTERS
    for batch in range(4):
        asked = answers(problems, FORMS.get(name, "in answer tags"), batch, characters)
        start = time.monotonic()
        scores = judge_all(task, asked)
        seconds.append(time.monotonic() - start)
        assert len(scores) == BATCH
    usual = median(seconds[1:])
    step = TINY_STEP_S if tiny else STEP_S
    share = f"{100 * usual / step:.2f}"
    print(
        f"{name:18}{seconds[0]:9.2f}{usual:9.3f}{1000 * usual / BATCH:9.2f}{share:>11}", flush=True
    )


def answers(
    problems: Sequence[Problem], form: str, batch: int, characters: int
) -> list[tuple[Problem, str]]:
    """A batch of (problem, answer) pairs."""
    rng = np.random.default_rng(batch)
    asked = []
    for i in range(BATCH):
        problem = problems[(batch * BATCH + i) % len(problems)]
        other = problems[int(rng.integers(len(problems)))]
        final = (problem.answer, other.answer, "")[i % 3]
        if form == "fenced":  # a query, which has some frequent words too
            final += "".join(f" w{word}" for word in rng.zipf(1.3, 6))
        thought = THOUGHT * (int(rng.integers(characters // 2, characters)) // len(THOUGHT))
        asked.append((problem, f"<think>{thought}</think>\nSo:\n{forms(final)[form]}"))
    return asked


def settings(folder: Path, pages: int) -> dict[str, Any]:
    """For each task a function that writes its data and returns its settings."""

    def task(name: str, **task_options: Any) -> TaskSettings:
        return TaskSettings(name=name, options=task_options)

    def rows(name: str, made: list[dict[str, Any]]) -> str:
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        return str(path)

    def math() -> TaskSettings:
        kinds = (r"\frac{{{n}}}{{{m}}}", "{n}", r"\sqrt{{{n}}}+{m}", "({n},{m})", "x^2+{n}x-{m}")
        made = [
            {"problem": f"Problem {n}.", "answer": kinds[n % 5].format(n=n + 2, m=n % 97 + 3)}
            for n in range(1200)
        ]
        return task("math", train=rows("math.jsonl", made))

    def choice() -> TaskSettings:
        texts = ["1 m", "2 m", "3 m", "4 m"]
        made = [
            {"question": f"Question {n}?", "answerKey": "ABCD"[n % 4],
             "choices": {"text": texts, "label": list("ABCD")}}
            for n in range(1200)
        ]  # fmt: skip
        return task("choice", train=rows("choice.jsonl", made))

    def jsonl() -> TaskSettings:
        made = [{"question": f"{n}+1?", "answer": n + 1} for n in range(1200)]
        paths = {"train_path": rows("a.jsonl", made), "test_path": rows("b.jsonl", made[:8])}
        return task("jsonl", scorer="boxed", **paths)

    def hover() -> TaskSettings:
        write_sample(folder / "raw", claims=1400)
        splits = {split: str(folder / f"raw/{split}.json") for split in ("train", "test")}
        import_hover(splits, str(folder / "raw/pages.jsonl"), str(folder / "hover"))
        if pages:
            build(random_pages(folder / "random.jsonl", pages), folder / "hover/pages")
        return task("hover", folder=str(folder / "hover"))

    tiny = ("tiny_star_graph", "tiny_code_output", "tiny_two_hop")
    return {
        "star_graph": lambda: task("star_graph", **SIZES),
        "code_io": lambda: task("code_io", **SIZES),
        "math": math,
        "hover": hover,
        "choice": choice,
        "reasoning_gym": lambda: task("reasoning_gym", dataset="chain_sum", **SIZES),
        "jsonl": jsonl,
        **{name: lambda name=name: task(name, **SIZES) for name in tiny},
    }


def random_pages(path: Path, count: int) -> Path:
    """Pages after the sample's: 60 words each, as frequent as Zipf's law has it."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write((path.parent / "raw/pages.jsonl").read_text())
        for number in range(count):
            words = " ".join(f"w{word}" for word in rng.zipf(1.3, 60) % 500_000)
            file.write(json.dumps({"title": f"Page {number}", "text": words}) + "\n")
    return path


if __name__ == "__main__":
    main(sys.argv[1:])
