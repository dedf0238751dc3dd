"""What a finished run says at its end: where the gain lives, and the prompts that were evolved."""

import json
from typing import Any

from fst_jax.config import Config
from fst_jax.display import CONTEXTS
from fst_jax.fast.pool import Pool
from fst_jax.run_folder import RunFolder

COLUMN = 16


def resume_command(folder: RunFolder) -> str:
    """What goes on with a run."""
    return f"python -m fst_jax.train --config {folder.config}"


def print_summary(folder: RunFolder, config: Config, step: int, pool: Pool, finished: bool) -> None:
    """Print the four quadrants, the seed beside the evolved prompts, and where the files are."""
    print()
    if not finished:
        print(f"stopped after step {step} of {config.train.steps}; to go on:")
        print(f"  {resume_command(folder)}")
        return
    evaluations = [event for event in _events(folder) if event["event"] == "eval"]
    tasks = dict.fromkeys(event["task"] for event in evaluations)
    for task in tasks:
        if len(tasks) > 1:
            print(f"\n{task}")
        own = [event for event in evaluations if event["task"] == task]
        print("\n".join(quadrants(own)))
    if config.fast.enabled:
        print("\nseed prompt\n" + _indented(pool.seed.text))
        for rank, prompt in enumerate({p.id: p for p in pool.active_prompts}.values(), start=1):
            source = "the seed itself" if prompt.origin == "seed" else f"by {prompt.origin}"
            print(f"\nprompt {rank} ({source}, {prompt.mean_score:.3f} on its anchors)")
            print(_indented(prompt.text))
    print(f"\nrun folder: {folder.path}")


def quadrants(evaluations: list[dict[str, Any]]) -> list[str]:
    """A table of held-out reward, {base, trained} weights × {seed, pool} context, and none."""
    newest = {(event["weights"], event["context"]): event for event in evaluations}
    first = evaluations[0]
    problems = first["n"] // first["k"]
    unprompted = any(context == "none" for _, context in newest)
    contexts = [context for context in CONTEXTS if context != "none" or unprompted]
    lines = [
        f"held-out reward: mean@{first['k']} over {problems} problems, {first['n']} rollouts each",
        f"{'':{COLUMN}}" + "".join(f"{CONTEXTS[context]:>{COLUMN}}" for context in contexts),
    ]
    for weights in ("base", "trained"):
        row = [newest.get((weights, context)) for context in contexts]
        if any(row):
            cells = "".join(f"{_cell(event):>{COLUMN}}" for event in row)
            lines.append(f"{weights + ' weights':{COLUMN}}{cells}")
    return lines


def _cell(event: dict[str, Any] | None) -> str:
    return "–" if event is None else f"{event['mean_at_k']:.3f}"


def _events(folder: RunFolder) -> list[dict[str, Any]]:
    lines = folder.metrics.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
