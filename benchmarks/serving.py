"""The engine's speed: tokens a second by batch, refilled slots, and a long shared system prompt.

    .venv/bin/python benchmarks/serving.py [--model models/SmolLM2-135M-Instruct] [--new 32]

Every figure is the better of two runs after one that compiles.  `--huggingface PYTHON` names a
Python with torch and transformers, whose `generate` then does the same work in its own process;
`--llama-cpp PYTHON --gguf FILE` one with llama-cpp-python, and the model as it reads it.

The limit is the time that the matrix products alone would take at the speed of this machine, both
measured in the same process: prefill at the rate of large products, and each step of decoding at
that rate or at the rate at which the weights can be read, whichever is slower.  Attention is left
out of it.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fst_jax.config import ParallelSettings
from fst_jax.models.decoder import Decoder
from fst_jax.models.folder import resolve
from fst_jax.models.huggingface import load_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.batching import Batcher
from fst_jax.rollout.engine import Request
from fst_jax.rollout.sample import Sample

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


def fastest(function: Callable[[], jax.Array], runs: int = 5) -> float:
    def once() -> float:
        start = time.perf_counter()
        function().block_until_ready()
        return time.perf_counter() - start

    return min([once() for _ in range(runs + 1)][1:])


def machine(dtype: jnp.dtype) -> tuple[float, float]:
    """FLOP/s of a large matrix product, and bytes/s of reading a large array."""
    size = 2048
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    large = jnp.ones(1 << 28, jnp.float32)
    reading = jax.jit(jnp.sum)
    return (
        2.0 * size**3 / fastest(lambda: product(a, a)),
        large.nbytes / fastest(lambda: reading(large)),
    )


def limit(
    model: Decoder, prefilled: int, samples: int, steps: int, peak: float, bandwidth: float
) -> float:
    """Seconds that the matrix products of this work take at least."""
    layers = sum(x.size for x in jax.tree.leaves(nnx.state(model.layers)))
    every = layers + model.embedding[...].size
    step = max(2.0 * samples * every / peak, every * model.dtype.itemsize / bandwidth)
    return 2.0 * prefilled * layers / peak + steps * step


def elsewhere(python: str | None, script: str, work: dict) -> float:
    """Seconds that another library takes; NaN if it is not to be asked."""
    if not python:
        return float("nan")
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [python, path], input=json.dumps(work), capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def by_batch(
    model: Decoder, folder: Path, cases: Sequence[tuple[int, ...]], options: argparse.Namespace
) -> None:
    """The table of (problems, samples of each)."""
    mesh, vocabulary = make_mesh(ParallelSettings()), model.config.vocab_size
    peak, bandwidth = machine(model.dtype)
    print(f"large products {peak / 1e9:.0f} GFLOP/s, reading {bandwidth / 1e9:.0f} GB/s\n")
    print("| problems × samples | tokens/s | first tokens, s | of the limit | "
          "Hugging Face, tokens/s | ratio | llama.cpp, tokens/s | ratio |")  # fmt: skip
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for problems, n in cases:
        asked, count = requests(vocabulary, problems, options.new, n), problems * n
        batcher = Batcher(model, mesh, count)
        whole, first = seconds(batcher, asked)
        bound = limit(model, batcher.work.prefilled, count, options.new, peak, bandwidth)
        prompts = [list(request.prompt_ids) for request in asked]
        work = {"folder": str(folder), "gguf": options.gguf, "threads": options.threads}
        work |= {"prompts": prompts, "n": n, "new": options.new}
        huggingface = elsewhere(options.huggingface, "huggingface_generate.py", work)
        llama = elsewhere(options.llama_cpp, "llama_cpp_generate.py", work)
        tokens = count * options.new
        print(f"| {problems} × {n} | {tokens / whole:.0f} | {first:.2f} | {bound / whole:.0%} | "
              f"{tokens / huggingface:.0f} | {huggingface / whole:.2f} | "
              f"{tokens / llama:.0f} | {llama / whole:.2f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--new", type=int, default=32, help="tokens of a sample")
    parser.add_argument(
        "--cases", default="1x1,8x1,32x1,4x8,1x32", help="problems x samples of each, with commas"
    )
    parser.add_argument("--system", type=int, default=1000, help="tokens of the shared prompt")
    parser.add_argument("--huggingface", help="a Python with torch and transformers")
    parser.add_argument("--llama-cpp", help="a Python with llama-cpp-python")
    parser.add_argument("--gguf", help="the model as a GGUF file, for llama.cpp")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    options = parser.parse_args()
    folder = resolve(options.model)
    model = load_model(folder, dtype=jnp.dtype(options.dtype))
    cases = [tuple(map(int, case.split("x"))) for case in options.cases.split(",")]
    by_batch(model, folder, cases, options)

    vocabulary, mesh = model.config.vocab_size, make_mesh(ParallelSettings())
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
