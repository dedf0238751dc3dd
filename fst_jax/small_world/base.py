"""python -m fst_jax.small_world.base: train the base model of the small world.

    python -m fst_jax.small_world.base [--seed 0] [--output models/fst-tiny]

A curriculum of three stages, each ended by evaluation and never by time, since seeds differ in
when the look-up skill appears:

 1. chains and look-ups until chains of seven nodes are told right;
 2. single instructions, with chains among them;
 3. the full corpus until the base begins to be right, then the same with a falling rate until it
    obeys and is right about every second time.  It is stopped early on purpose: a base that is
    always right leaves nothing to learn.

The result is an ordinary Hugging Face folder with a model card of measured figures.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from fst_jax.config import ParallelSettings
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder
from fst_jax.models.folder import load_tokenizer, stop_ids
from fst_jax.models.huggingface import save_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.chat import Chat
from fst_jax.rollout.engine import Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.settings import command
from fst_jax.sft import sample
from fst_jax.slow.packing import Sample, pack
from fst_jax.slow.supervised import SupervisedLearner, make_optimizer
from fst_jax.small_world import corpus
from fst_jax.small_world.card import write_card
from fst_jax.small_world.corpus import Document
from fst_jax.small_world.obedience import following, instructed, obedience
from fst_jax.small_world.vocabulary import END, PAD, SPECIAL, write_tokenizer

MAX_TOKENS = 160
RATE, WARMUP = 0.02, 30  # Muon's peak rate and its warm-up in steps
SKILLED = 0.4  # share of chains told right that ends the first stage
BEGINNING = 0.2  # mean share of right answers under both instructions at which the rate falls
RIGHT, VERY_RIGHT = 0.5, 0.6  # and at which training ends: at the first if the base obeys well
OBEDIENT, LEAST_OBEDIENT = 0.93, 0.6  # mean over prompts, and with both of any kind of question
CHAIN_STEPS, SINGLE_STEPS, FULL_STEPS = 100, 200, 10
FALL, LEAST_SHARE = 0.7, 0.05  # of the rate each time, and at the least
MICRO_BATCH_ROWS = 8
TRIAL_QUESTIONS = 32

Draw = Callable[[np.random.Generator], Document]


class Trainer:
    """The model, its optimiser and an engine that tries it out."""

    def __init__(self, folder: Path, seed: int):
        """A random model for the configuration and tokenizer in `folder`."""
        self.chat = Chat(load_tokenizer(folder), stop_ids=stop_ids(folder))
        config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))
        mesh = make_mesh(ParallelSettings())
        model = Decoder(config, rngs=nnx.Rngs(params=seed))
        self.engine = LocalEngine(model, mesh, batch_size=128)
        self.learner = SupervisedLearner(model, make_optimizer("muon"), mesh, head_chunk=512)
        self.rng = np.random.default_rng(seed)
        self.steps = self.tokens = 0
        self._started = time.monotonic()

    def learn(self, draw: Draw, steps: int, documents: int, share: float = 1.0) -> None:
        """`steps` updates on batches of drawn documents, at a share of the peak rate."""
        losses = []
        for _ in range(steps):
            batch = pack(
                [self._sample(draw(self.rng)) for _ in range(documents)],
                1,
                MICRO_BATCH_ROWS,
                self.learner.mesh,
            )
            rate = RATE * min(share, (self.steps + 1) / WARMUP)
            losses.append(float(self.learner.step(batch, rate)))
            self.steps += 1
            self.tokens += int(np.count_nonzero(batch.segments))
        self.say(f"loss {np.mean(losses):.3f}")

    @property
    def seconds(self) -> float:
        """Since training began."""
        return time.monotonic() - self._started

    def say(self, what: str) -> None:
        """Print where training stands."""
        done = f"{self.seconds:6.0f} s  step {self.steps:5d}  {self.tokens / 1e6:.2f}M tokens"
        print(f"{done}  {what}", flush=True)

    def chains_right(self, count: int = 128, nodes: int = 7) -> float:
        """Share of chains of `nodes` nodes that are told right, told the direction."""
        rng = np.random.default_rng(0)
        documents = [corpus.chain(rng, nodes) for _ in range(count)]
        requests = [
            Request(self._sample(d).context_ids, 1, nodes + 1, stop_ids=self.chat.stop_ids)
            for d in documents
        ]
        told = self._serve().generate(requests)
        right = [
            self.chat.decode(completion.ids.tolist()).split()
            == document.answer.split()[document.given :]
            for document, (completion,) in zip(documents, told, strict=True)
        ]
        return float(np.mean(right))

    def obedience(self, questions: int) -> dict[str, Any]:
        """Figures of the model as it is; see `small_world/obedience.py`."""
        return obedience(self._serve(), self.chat, questions)

    def _serve(self) -> LocalEngine:
        self.engine.update_weights(self.learner.params, self.steps)
        return self.engine

    def _sample(self, document: Document) -> Sample:
        messages = [
            {"role": "system", "content": document.system},
            {"role": "user", "content": document.question},
            {"role": "assistant", "content": document.answer},
        ]
        return sample(self.chat, messages, document.given)


def train_base(output: Path, seed: int) -> None:
    """Train a base model and write its folder, model card included."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        vocabulary = write_tokenizer(source, MAX_TOKENS)
        configuration = architecture(vocabulary)
        (source / "config.json").write_text(json.dumps(configuration, indent=2) + "\n")
        trainer = Trainer(source, seed)
        teach(trainer)
        config = ModelConfig.from_hf(configuration)
        save_model(output, trainer.learner.params, config, source)
    training = {
        "seed": seed,
        "steps": trainer.steps,
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds),
    }
    (output / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    write_card(output)
    trainer.say(f"wrote {output}")


def teach(trainer: Trainer) -> None:
    """The three stages."""
    skill = 0.0
    while skill < SKILLED:
        trainer.learn(_looking_up, CHAIN_STEPS, 32)
        skill = trainer.chains_right()
        trainer.say(f"chains right: {skill:.2f}")
    trainer.learn(_mostly(corpus.single_instruction, 0.7), SINGLE_STEPS, 32)
    full = _mostly(corpus.document, 0.95)
    share = 1.0
    while True:
        trainer.learn(full, FULL_STEPS, 64, share)
        figures = trainer.obedience(TRIAL_QUESTIONS)
        right, obeys = float(np.mean(instructed(figures))), following(figures)
        least = min(instructed(figures, "follows"))
        trainer.say(f"right {instructed(figures)}, follows {obeys:.3f}, least {least:.3f}")
        needed = VERY_RIGHT if least < LEAST_OBEDIENT else RIGHT
        if right >= needed and obeys >= OBEDIENT:
            return
        if right >= BEGINNING:
            share = max(share * FALL, LEAST_SHARE)


def architecture(vocabulary: int) -> dict[str, Any]:
    """The config.json: Qwen3 with 3 layers, 0.6 M parameters."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": MAX_TOKENS,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index(END),
        "pad_token_id": SPECIAL.index(PAD),
    }


def _looking_up(rng: np.random.Generator) -> Document:
    return corpus.chain(rng) if rng.random() < 0.5 else corpus.look_up(rng)


def _mostly(draw: Draw, share: float) -> Draw:
    """`draw`, with look-ups among it, so that the skill is kept."""
    return lambda rng: draw(rng) if rng.random() < share else _looking_up(rng)


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fst_jax.small_world.base",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of parameters and corpus")
    parser.add_argument("--output", type=Path, default=Path("models/fst-tiny"), help="new folder")
    options = parser.parse_args(arguments)
    train_base(options.output, options.seed)


if __name__ == "__main__":
    sys.exit(command(main))
