"""Seconds of the programs that a run spends its time in, on this machine.

    .venv/bin/python benchmarks/hot_paths.py [--model models/SmolLM2-135M-Instruct] [--dtype D]
    taskset -c 0 .venv/bin/python benchmarks/hot_paths.py --model fst-tiny --rows 8 \\
      --completions 8 --new 24 --prompts 64 --samples 2

Each row: a warm-up (which compiles), then the median wall and CPU time of a few calls.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fst_jax.config import ParallelSettings, SlowSettings
from fst_jax.models.folder import resolve
from fst_jax.models.huggingface import load_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.engine import Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.rollout.sampler import Choice, choose
from fst_jax.slow.learner import micro_batch_loss
from fst_jax.slow.logprobs import score_tokens
from fst_jax.slow.packing import Sample, pack

CONTEXT = 60
CALLS = 3


def measure(name: str, work: str, function: Callable[..., Any], *arguments: Any) -> None:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    first = time.perf_counter() - start
    wall, cpu = [], []
    for _ in range(CALLS):
        at, at_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*arguments))
        wall.append(time.perf_counter() - at)
        cpu.append(time.process_time() - at_cpu)
    print(
        f"| {name} | {work} | {statistics.median(wall):.3f} | {statistics.median(cpu):.3f} "
        f"| {first:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    for name, default, help in (
        ("rows", 4, "of a training micro-batch"),
        ("completions", 4, "of a training row"),
        ("new", 16, "tokens of a completion"),
        ("prompts", 12, "of a sampling batch"),
        ("samples", 4, "of each prompt"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=help)
    options = parser.parse_args()
    per_batch, completions, new = options.rows, options.completions, options.new
    count, n = options.prompts, options.samples
    model = load_model(
        resolve(options.model), dtype=jnp.dtype(options.dtype), param_dtype=jnp.float32
    )
    graphdef, params = nnx.split(model)
    mesh = make_mesh(ParallelSettings())
    rng = np.random.default_rng(0)
    vocabulary = model.config.vocab_size

    def tokens(*shape: int) -> np.ndarray:
        return rng.integers(0, vocabulary, shape).astype(np.int32)

    def sample(context: tuple[int, ...], group: int) -> Sample:
        return Sample(context, tokens(new), -np.ones(new, np.float32), 1.0, group, 1.0, True)

    contexts = [tuple(tokens(CONTEXT).tolist()) for _ in range(per_batch)]
    samples = [sample(c, group) for group, c in enumerate(contexts) for _ in range(completions)]
    rows = jax.tree.map(lambda x: jnp.asarray(x[0]), pack(samples, completions, per_batch, mesh))
    alone = jax.tree.map(lambda x: jnp.asarray(x[0]), pack(samples, 1, len(samples), mesh))

    engine = LocalEngine(model, mesh, count * n)
    asked = [tuple(tokens(CONTEXT).tolist()) for _ in range(count)]

    def generate(limit: int) -> list[Any]:
        engine.batcher.flush()
        return engine.generate(
            [Request(ids, n, limit, seed=seed) for seed, ids in enumerate(asked)]
        )

    def choice() -> Choice:
        column = partial(np.full, (count, n))
        return Choice(
            column(1.0, np.float32), column(0.95, np.float32), column(0), column(0.0, np.float32),
            np.arange(count * n, dtype=np.int32).reshape(count, n), column(0),
        )  # fmt: skip

    settings = SlowSettings()
    chunk = settings.head_chunk
    scores = jax.jit(lambda p, r: score_tokens(nnx.merge(graphdef, p), r, chunk, mesh))
    loss = partial(micro_batch_loss, graphdef=graphdef, settings=settings, mesh=mesh)

    @jax.jit
    def gradient(params: Any, frozen: Any, rows: Any) -> Any:
        reference = scores(frozen, rows).logprob
        return jax.grad(loss, has_aux=True)(params, frozen, rows, reference)

    logits = jax.random.normal(jax.random.key(0), (count, n, vocabulary)) * 3

    print("| program | work | wall s | CPU s | first call s |\n|---|---|--:|--:|--:|")
    shape = f"{per_batch} rows of {rows.tokens.shape[1]} tokens"
    measure("log-probabilities", shape, scores, params, rows)
    measure("loss and gradient, context shared", shape, gradient, params, params, rows)
    shape = f"{alone.tokens.shape[0]} rows of {alone.tokens.shape[1]} tokens"
    measure("loss and gradient, a row each", shape, gradient, params, params, alone)
    shape = f"{count} prompts of 64 tokens"
    measure("prefill and 1 token", shape, generate, 1)
    shape = f"{count * n} samples"
    measure(f"prefill and {new} tokens", shape, generate, new)
    step = np.full((count, n), 3)
    for truncated in (False, True):
        draw = jax.jit(partial(choose, truncated=truncated))
        name = "draw a token, top-p" if truncated else "draw a token, full support"
        measure(name, shape, draw, logits, choice(), step)


if __name__ == "__main__":
    main()
