"""The learner's step: tokens a second by context and group, sharing, and other libraries.

    .venv/bin/python benchmarks/train_step.py [--problems 4] [--completion 64]

`--trl PYTHON` and `--tunix PYTHON` name a Python with TRL or Tunix, whose GRPO then makes the same
update in a process of its own.  An update is reference log-probabilities, loss, gradient and AdamW,
in float32, of a Llama-shaped model with random weights and a step's completions, which are given.

Tokens are those that a user counts: rollouts × (context + completion), however often a context is
computed.  The share of the peak counts what a step over shared contexts needs, as the model FLOPs
of PaLM do (arXiv 2204.02311, app. B), with the reference: for every token of a row 8 FLOPs a weight
(reference 2, gradient 6), the same in the head for every completion token, and attention over what
tokens see.  Recomputation, masked attention and padding are not counted.  The peak is that of a
large float32 product in the same process, taken beside each figure.  A step's time is the best of
several after one that compiles.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from serving import elsewhere, fastest

from fst_jax.config import ParallelSettings, SlowSettings
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder
from fst_jax.models.row_attention import row_mask
from fst_jax.parallel.mesh import make_mesh
from fst_jax.slow.learner import Learner
from fst_jax.slow.packing import Batch, Sample, completions_per_row, pack

SHAPE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1536,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10_000, "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip


def drawn(problems: int, n: int, context: int, completion: int) -> dict[str, Any]:
    """The work of an update; JSON can say it."""
    rng = np.random.default_rng(0)

    def ids(*shape: int) -> list:
        return rng.integers(100, SHAPE["vocab_size"], shape).tolist()

    return {
        "contexts": ids(problems, context),
        "completions": ids(problems, n, completion),
        "rewards": [float(i % 2) for i in range(n)],  # of each problem's completions
    }


def samples(work: dict[str, Any]) -> list[Sample]:
    """As the learner takes them."""
    behaviour = np.full(len(work["completions"][0][0]), -1.0, np.float32)
    return [
        Sample(tuple(context), np.asarray(ids), behaviour, 1.0, group, 2.0 * reward - 1.0, True)
        for group, context in enumerate(work["contexts"])
        for ids, reward in zip(work["completions"][group], work["rewards"], strict=True)
    ]


class Steps:
    """A learner, and what it is timed against."""

    def __init__(self, runs: int, rows: int):
        self.config = ModelConfig.from_hf(SHAPE)
        self.mesh, self.runs = make_mesh(ParallelSettings()), runs
        model = Decoder(self.config, rngs=nnx.Rngs(0))
        self.layers = sum(x.size for x in jax.tree.leaves(nnx.state(model.layers)))
        self.head = self.config.vocab_size * self.config.hidden_size
        self.learner = Learner(model, SlowSettings(micro_batch_rows=rows), self.mesh)

    def pack(self, some: list[Sample], per_row: int) -> Batch:
        rows = min(self.learner.settings.micro_batch_rows, len(some) // per_row)
        return pack(some, per_row, rows, self.mesh)

    def seconds(self, *batches: Batch) -> list[float]:
        """Of a step over each batch, taken in turn."""
        times: list[list[float]] = [[] for _ in batches]
        for _ in range(self.runs + 1):
            for batch, taken in zip(batches, times, strict=True):
                start = time.perf_counter()
                self.learner.step(batch)
                taken.append(time.perf_counter() - start)
        return [min(taken[1:]) for taken in times]

    def needed(self, batch: Batch) -> float:
        """FLOPs of the matrix products over a batch's tokens, what they see, and its targets."""
        tokens, targets = np.count_nonzero(batch.segments), np.count_nonzero(batch.token_weight)
        rows = (x.reshape(-1, x.shape[-1]) for x in (batch.segments, batch.parents))
        seen = sum(
            int(row_mask(s[None], p[None], s[None]).sum()) for s, p in zip(*rows, strict=True)
        )
        width = self.config.num_layers * self.config.num_heads * self.config.head_dim
        return 8.0 * (self.layers * tokens + self.head * targets + 2 * width * seen)

    def per_row(self, n: int, context: int, completion: int) -> int:
        return completions_per_row(n, context, completion, self.config.hidden_size)


def peak() -> float:
    """FLOP/s of a large float32 product."""
    size = 2048
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2.0 * size**3 / fastest(lambda: product(a, a))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=4, help="contexts of a step")
    parser.add_argument("--completion", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--runs", type=int, default=3, help="timed steps of each kind")
    parser.add_argument(
        "--rows", type=int, default=SlowSettings().micro_batch_rows, help="of a micro-batch"
    )
    parser.add_argument(
        "--cases", default="128x8,256x8,512x8,1024x8,256x4,256x16", help="context x completions"
    )
    parser.add_argument("--sharing", default="512x8", help="context x completions, or nothing")
    parser.add_argument("--peers", default="256x8", help="the case of the other libraries")
    parser.add_argument("--trl", help="a Python with trl")
    parser.add_argument("--tunix", help="a Python with google-tunix")
    parser.add_argument(
        "--tokenizer", default="models/SmolLM2-135M-Instruct", help="that TRL decodes with"
    )
    options = parser.parse_args()
    problems, length = options.problems, options.completion
    steps = Steps(options.runs, options.rows)

    def sizes(cases: str) -> list[list[int]]:
        return [[int(size) for size in case.split("x")] for case in cases.split(",") if case]

    if options.cases:
        print("| context | completions | a row | step, s | tokens/s | of the peak | GFLOP/s |")
        print("|--:|--:|--:|--:|--:|--:|--:|")
    for context, n in sizes(options.cases):
        per_row = steps.per_row(n, context, length)
        batch = steps.pack(samples(drawn(problems, n, context, length)), per_row)
        before = peak()
        (taken,) = steps.seconds(batch)
        best = max(before, peak())
        tokens = problems * n * (context + length)
        print(f"| {context} | {n} | {per_row} | {taken:.2f} | {tokens / taken:.0f} | "
              f"{steps.needed(batch) / taken / best:.0%} | {best / 1e9:.0f} |",
              flush=True)  # fmt: skip

    for context, n in sizes(options.sharing):
        work = drawn(problems, n, context, length)
        some, joined = samples(work), [[sum(each, [])] for each in work["completions"]]
        plain_rows = samples(work | {"completions": joined, "rewards": [1.0]})
        batches = steps.pack(some, steps.per_row(n, context, length)), steps.pack(some, 1)
        shared, alone, plain = steps.seconds(*batches, steps.pack(plain_rows, 1))
        print(f"\ncontext {context}, {n} completions: shared {shared:.2f} s, a row each "
              f"{alone:.2f} s ({alone / shared:.2f} times), plain rows of as many tokens "
              f"{plain:.2f} s (shared takes {shared / plain:.2f} times that)")  # fmt: skip

    python = {"TRL": (options.trl, "trl_step.py"), "Tunix": (options.tunix, "tunix_step.py")}
    for context, n in sizes(options.peers) if options.trl or options.tunix else []:
        work = drawn(problems, n, context, length)
        batch = steps.pack(samples(work), steps.per_row(n, context, length))
        tokens = problems * n * (context + length)
        work |= {"model": SHAPE, "tokenizer": options.tokenizer}
        work |= {"beta": SlowSettings().kl_coefficient, "updates": options.runs + 1}
        (ours,) = steps.seconds(batch)
        print(f"\ncontext {context}, {n} completions: {tokens / ours:.0f} tokens/s")
        for name, (program, script) in python.items():
            if program:
                theirs = elsewhere(program, script, work)
                (ours,) = steps.seconds(batch)
                print(f"{name} {tokens / theirs:.0f} tokens/s, ours beside it "
                      f"{tokens / ours:.0f}: {theirs / ours:.2f} times", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
