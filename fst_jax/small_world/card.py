"""python -m fst_jax.small_world.card FOLDER [OTHER_SEED ...]: the model card of a base model.

Measures the models and writes FOLDER/README.md: those of other pre-training seeds stand beside the
model's own figures, which figures.json holds too.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from fst_jax.config import ParallelSettings
from fst_jax.errors import ModelError
from fst_jax.models.folder import load_config, load_tokenizer, stop_ids
from fst_jax.models.huggingface import load_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.chat import Chat
from fst_jax.rollout.local import LocalEngine
from fst_jax.settings import command
from fst_jax.small_world.obedience import PROMPTS, SAMPLES, following, obedience
from fst_jax.small_world.questions import KINDS

QUESTIONS = 256  # of each kind under each prompt

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

Questions drawn anew, wordings that the corpus never held, temperature 1, {answers} answers each.
"follows" is the share of completions that use the strategy and the format that are asked for.
"""


def model_card(seeds: Sequence[Mapping[str, Any]], vocabulary: int) -> str:
    """The card's Markdown; `seeds` are the figures of each seed, the model's own first."""
    own = seeds[0]
    lines = [
        _HEAD.format(
            parameters=own["parameters"] / 1e6,
            tokens=own["tokens"] / 1e6,
            vocabulary=vocabulary,
            seed=own["seed"],
            steps=own["steps"],
            answers=own["answers"],
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


def write_card(folder: Path, *others: Path) -> None:
    """Measure the models in `folder` and `others`, and write figures.json and README.md."""
    seeds = [measured(each) for each in (folder, *others)]
    (folder / "figures.json").write_text(json.dumps(seeds, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(seeds, load_config(folder).vocab_size))


def measured(folder: Path) -> dict[str, Any]:
    """What training.json says of a base model's training, and its figures.

    Raises:
      ModelError: the folder holds no base model.
    """
    try:
        training = json.loads((folder / "training.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{error}: give folders that python -m fst_jax.small_world.base has written"
        ) from error
    model = load_model(folder)
    chat = Chat(load_tokenizer(folder), stop_ids=stop_ids(folder))
    engine = LocalEngine(model, make_mesh(ParallelSettings()), batch_size=128)
    return training | {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))),
        "answers": QUESTIONS * SAMPLES,
        "kinds": obedience(engine, chat, QUESTIONS),
    }


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fst_jax.small_world.card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="the model, then its other seeds")
    write_card(*parser.parse_args(arguments).folders)


if __name__ == "__main__":
    sys.exit(command(main))
