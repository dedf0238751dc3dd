"""The engine's speed: tokens a second by batch, refilled slots, and a long shared system prompt.

    .venv/bin/python benchmarks/serving.py [--model models/SmolLM2-135M-Instruct] [--new 32]

Every figure is the better of two runs after one that compiles.  `--huggingface PYTHON` names a
Python with torch and transformers, whose `generate` then does the same work in its own process.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from fst_jax.config import ParallelSettings
from fst_jax.models.folder import resolve
from fst_jax.models.huggingface import load_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.batching import Batcher, Sample
from fst_jax.rollout.engine import Request

PROMPT = 64  # tokens


def requests(vocabulary: int, count: int, new: int, n: int = 1, system: int = 0) -> list[Request]:
    rng = np.random.default_rng(0)
    shared = rng.integers(100, vocabulary, system).tolist()
    return [
        Request((*shared, *rng.integers(100, vocabulary, PROMPT).tolist()), n, new, 1.0, seed=seed)
        for seed in range(count)
    ]


def seconds(batcher: Batcher, asked: list[Request], limits: list[int] | None = None) -> list[float]:
    """Seconds of the whole work, and until every sample had a token; the better of two runs."""
    runs = []
    for _ in range(3):
        batcher.flush()
        batcher.work.__init__()  # type: ignore[misc]
        samples = [
            Sample(
                request
                if limits is None
                else Request(request.prompt_ids, 1, limits[i], 1.0, seed=request.seed),
                seed,
            )
            for i, request in enumerate(asked)
            for seed in request.sample_seeds
        ]
        start, first = time.perf_counter(), 0.0
        batcher.submit(samples)
        while batcher.advance(8):
            if not first and all(sample.ids for sample in samples):
                first = time.perf_counter() - start
        runs.append([time.perf_counter() - start, first])
    return min(runs[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--new", type=int, default=32, help="tokens of a sample")
    parser.add_argument("--batches", default="1,8,32", help="numbers of samples")
    parser.add_argument("--system", type=int, default=1000, help="tokens of the shared prompt")
    parser.add_argument("--huggingface", help="a Python with torch and transformers")
    options = parser.parse_args()
    folder = resolve(options.model)
    model = load_model(folder, dtype=jnp.dtype(options.dtype))
    vocabulary, mesh = model.config.vocab_size, make_mesh(ParallelSettings())

    print("| samples | tokens/s | until all have a token, s | Hugging Face, tokens/s | ratio |")
    print("|--:|--:|--:|--:|--:|")
    for count in map(int, options.batches.split(",")):
        asked = requests(vocabulary, count, options.new)
        whole, first = seconds(Batcher(model, mesh, count), asked)
        ours, theirs = count * options.new / whole, float("nan")
        if options.huggingface:
            script = Path(__file__).with_name("huggingface_generate.py")
            work = {"folder": str(folder), "new": options.new}
            work["prompts"] = [list(request.prompt_ids) for request in asked]
            done = subprocess.run(
                [options.huggingface, script], input=json.dumps(work),
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            theirs = count * options.new / float(done.stdout)
        print(f"| {count} | {ours:.0f} | {first:.2f} | {theirs:.0f} | {ours / theirs:.2f} |")

    limits = [options.new // 4] * 7 + [2 * options.new]
    asked = requests(vocabulary, 64, 1)
    varied = [limits[i % 8] for i in range(64)]
    batcher = Batcher(model, mesh, 8)
    whole, _ = seconds(batcher, asked, varied)
    static = sum(seconds(batcher, asked[i : i + 8], limits)[0] for i in range(0, 64, 8))
    print(f"\n64 samples of {limits[0]} or {limits[-1]} tokens in 8 slots: refilled {whole:.2f} s, "
          f"batch by batch {static:.2f} s, ratio {static / whole:.2f}")  # fmt: skip

    asked = requests(vocabulary, 32, 8, n=8, system=options.system)
    batcher = Batcher(model, mesh, 64)
    whole, _ = seconds(batcher, asked)
    without = sum(len(request.prompt_ids) * request.n for request in asked)
    once = sum(len(request.prompt_ids) for request in asked)
    work = batcher.work
    print(
        f"32 problems x 8 samples under {options.system} tokens: {work.prefilled} tokens "
        f"prefilled, of {once} once a problem and {without} once a sample; {whole:.1f} s"
    )


if __name__ == "__main__":
    main()
