"""Memory of the training step, as XLA plans it: head, remat, optimisers, reference, LoRA.

    .venv/bin/python benchmarks/memory.py                       # for this machine's CPU
    .venv/bin/python benchmarks/memory.py --topology v5p:2x2x1  # for a TPU chip; needs libtpu

Each row is the real `train_step`, compiled and not run: `memory_analysis()` of the executable.
Temporaries are what it needs beside its arguments: activations, gradients, logits.  Arguments are
θ or adapters, optimiser, what is frozen, and the batch.
"""

import argparse
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fst_jax.config import ParallelSettings, SlowSettings
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import batch_shardings, shardings
from fst_jax.plan import devices
from fst_jax.slow.learner import LearnerState, jitted_step, state_shardings
from fst_jax.slow.optimizer import make_optimizer
from fst_jax.slow.packing import Sample, pack
from fst_jax.slow.policy import starting_shapes

MIB = 2**20
CONTEXT = 64
HEAD = ModelConfig("qwen3", 151_936, 256, 512, 2, 2, 2, 128, qk_norm=True)
DEEP = ModelConfig("qwen3", 8_192, 1024, 3072, 12, 8, 4, 128, qk_norm=True)
WIDE = dataclasses.replace(DEEP, vocab_size=32_000)


def measure(
    config: ModelConfig,
    settings: SlowSettings,
    mesh: Mesh,
    *,
    tokens: int,
    rows: int = 1,
    dtype: str = "float32",
    remat: Any = "none",
) -> dict[str, float]:
    """MiB by kind, of one step of `rows` rows with one completion of `tokens` tokens each."""
    frozen_dtype = dtype if settings.lora_rank else "float32"
    platform = mesh.devices.flat[0].platform
    model = partial(
        Decoder, config, dtype=dtype, param_dtype=frozen_dtype, remat=remat, platform=platform
    )
    graphdef, params = nnx.split(nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0))))
    trained, frozen = starting_shapes(params, settings)
    optimizer = jax.eval_shape(make_optimizer(settings).init, trained)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    placed = state_shardings(trained, settings, mesh)

    def described(tree: Any, split: Any, memory: str | None = None) -> Any:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=s.with_memory_kind(memory) if memory else s
            ),
            tree,
            split,
        )

    where = "pinned_host" if settings.reference == "offload" else None
    ids = np.ones(tokens, np.int32)
    sample = Sample((1,) * CONTEXT, ids, -np.ones(tokens, np.float32), 1.0, 0, 1.0, True)
    contexts = ((row + 1,) * CONTEXT for row in range(rows))
    batch = pack([dataclasses.replace(sample, context_ids=c) for c in contexts], 1, rows, mesh)
    compiled = (
        jitted_step(graphdef, settings, mesh, placed)
        .lower(
            described(LearnerState(trained, optimizer, step), placed),
            described(frozen, shardings(frozen, mesh), where),
            described(batch, batch_shardings(batch, mesh)),
        )
        .compile()
    )
    plan = compiled.memory_analysis()

    def size(tree: Any) -> float:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / MIB

    return {
        "trained": size(trained),
        "optimizer": size(optimizer),
        "frozen": size(frozen),
        "arguments": plan.argument_size_in_bytes / MIB,
        "host": (plan.host_argument_size_in_bytes + plan.host_temp_size_in_bytes) / MIB,
        "temporaries": plan.temp_size_in_bytes / MIB,
    }


def head(mesh: Mesh) -> None:
    """Vocabulary × tokens, in chunks and whole."""
    print(f"\nVocabulary head: {HEAD.num_layers} layers of {HEAD.hidden_size}, remat full, "
          "temporaries beyond the gradients of all parameters, MiB\n")  # fmt: skip
    print("| vocabulary | tokens | logits, one array | chunks of 1,024 | of 256 | whole |\n"
          "|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for vocabulary in (64, 37_984, 151_936):
        config = dataclasses.replace(HEAD, vocab_size=vocabulary)
        for tokens in (1_024, 4_096):
            found = []
            for chunk in (1_024, 256, tokens):
                settings = SlowSettings(head_chunk=chunk)
                plan = measure(config, settings, mesh, tokens=tokens, remat="full")
                found.append(plan["temporaries"] - plan["trained"])
            cells = " | ".join(f"{x:,.0f}" for x in (4 * vocabulary * tokens / MIB, *found))
            print(f"| {vocabulary:,} | {tokens:,} | {cells} |", flush=True)


def remat(mesh: Mesh) -> None:
    """What the backward pass keeps."""
    print(f"\nRemat: {DEEP.num_layers} layers of {DEEP.hidden_size}, bfloat16, 2 rows of 2,048 "
          "tokens, MiB\n\n| model.remat | temporaries | on the host |\n|---|--:|--:|")  # fmt: skip
    for policy in ("none", "dots", "full", "offload"):
        plan = measure(DEEP, SlowSettings(), mesh, tokens=1_984, rows=2, dtype="bfloat16",
                       remat=policy)  # fmt: skip
        print(f"| {policy} | {plan['temporaries']:,.0f} | {plan['host']:,.0f} |", flush=True)


def states(mesh: Mesh) -> None:
    """Optimisers, the reference and LoRA."""
    print(f"\nState: {WIDE.num_layers} layers of {WIDE.hidden_size}, vocabulary "
          f"{WIDE.vocab_size:,}, bfloat16, remat full, 1 row of 1,024 tokens, MiB\n\n"
          "| settings | trained | optimizer | frozen | arguments | on the host | temporaries "
          "| arguments + temporaries |\n|---|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    lora = SlowSettings(lora_rank=16)
    for name, settings in {
        "adamw": SlowSettings(),
        "adamw_bfloat16": SlowSettings(optimizer="adamw_bfloat16"),
        "adafactor": SlowSettings(optimizer="adafactor"),
        "adamw, reference: offload": SlowSettings(reference="offload"),
        "adafactor, reference: offload": SlowSettings(optimizer="adafactor", reference="offload"),
        "adamw, lora_rank: 16": lora,
    }.items():
        plan = measure(WIDE, settings, mesh, tokens=960, dtype="bfloat16", remat="full")
        peak = plan["arguments"] + plan["temporaries"]
        kinds = ("trained", "optimizer", "frozen", "arguments", "host", "temporaries")
        cells = " | ".join(f"{x:,.0f}" for x in (*(plan[kind] for kind in kinds), peak))
        print(f"| {name} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="cpu:1", help="cpu:1, or a TPU topology as v5p:2x2x1")
    parser.add_argument("--only", choices=["head", "remat", "states"], help="one table")
    options = parser.parse_args()
    # Cached programs do not tell their memory.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = make_mesh(ParallelSettings(), devices(options.topology)[:1])
    print(f"jax {jax.__version__}, compiled for {mesh.devices.flat[0].device_kind}")
    for table in (head, remat, states):
        if options.only in (None, table.__name__):
            table(mesh)


if __name__ == "__main__":
    main()
