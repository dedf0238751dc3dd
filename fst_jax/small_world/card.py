"""python -m fst_jax.small_world.card FOLDER [OTHER_SEED ...]: the model card of a base model.

Writes FOLDER/README.md from the figures.json that training left there and in the folders of other
pre-training seeds.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fst_jax.errors import ModelError
from fst_jax.settings import command
from fst_jax.small_world.obedience import PROMPTS, following
from fst_jax.small_world.questions import KINDS

_HEAD = """---
license: apache-2.0
library_name: transformers
---
# fst-tiny

A language model of {parameters:.1f} million parameters that obeys instruction sentences, made to
test Fast-Slow Training on a laptop: Qwen3 architecture, {tokens:.1f} million tokens of training
from a corpus that the project generates, vocabulary of {vocabulary} words. It knows nothing but
three kinds of question (star graphs, short list programs, two-hop look-up) and the sentences that
choose a strategy and an answer format for them. Under a generic prompt it mostly uses the poor
strategy and the wrong format; under the right instructions it is right about every second time.

Made by `make tiny-base` (`python -m fst_jax.small_world.base --seed {seed}`), in {steps} steps.
Each stage of the curriculum ends by evaluation; the checkpoint is an early one on purpose.

## Figures

Questions drawn anew, wordings that the corpus never held, temperature 1, {samples} samples each.
"follows" is the share of completions that use the strategy and the format that are asked for.
"""


def model_card(seeds: Sequence[Mapping[str, Any]], configuration: Mapping[str, Any]) -> str:
    """The card's Markdown; `seeds` are the figures of each seed, the model's own first."""
    own = seeds[0]
    lines = [
        _HEAD.format(
            parameters=own["parameters"] / 1e6,
            tokens=own["tokens"] / 1e6,
            vocabulary=configuration["vocab_size"],
            seed=own["seed"],
            steps=own["steps"],
            samples=own["questions"],
        )
    ]
    columns = " | ".join(f"{kind}: right | follows | good strategy" for kind in KINDS)
    for figures in seeds:
        lines.append(
            f"### Seed {figures['seed']}\n\n"
            f"{figures['steps']} steps, {figures['tokens'] / 1e6:.2f} million tokens, "
            f"{figures['seconds'] / 60:.0f} minutes; follows its prompt "
            f"{following(figures['kinds']):.1%} of the time.\n\n"
            f"| prompt | {columns} |\n|---|{'---:|' * 3 * len(KINDS)}"
        )
        for label in (*PROMPTS, "hard"):
            cells = [
                f"{figures['kinds'][kind][label][name]:.1%}"
                for kind in KINDS
                for name in ("right", "follows", "good")
            ]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fst_jax.small_world.card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="the model, then its other seeds")
    folders = parser.parse_args(arguments).folders
    try:
        seeds = [json.loads((folder / "figures.json").read_text()) for folder in folders]
        configuration = json.loads((folders[0] / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{error}: give folders that python -m fst_jax.small_world.base has written"
        ) from error
    (folders[0] / "README.md").write_text(model_card(seeds, configuration))


if __name__ == "__main__":
    sys.exit(command(main))
