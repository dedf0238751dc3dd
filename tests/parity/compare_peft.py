"""Adapters against PEFT: `python -m tests.parity.compare_peft --peft-python PYTHON`.

PYTHON is an interpreter with torch, transformers and peft; none is imported here.  Exports random
adapters, has PEFT load them, and prints a markdown table; exits with 1 if a float32 logit differs
by more than 1e-4 from ours, be the adapter attached or merged, or if the adapter hardly matters.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fst_jax.models import lora, peft
from fst_jax.models.attention import attention
from fst_jax.models.decoder import Decoder
from fst_jax.models.huggingface import load_model
from fst_jax.models.lora import LowRank
from tests.helpers import tiny_model_folder

TOLERANCE = 1e-4  # absolute, on every logit
RANK, ALPHA = 4, 8.0
CASES = {
    "Llama, every linear layer": ({"family": "llama"}, ""),
    "Llama with biases, attention": ({"family": "llama", "attention_bias": True}, "attention"),
    "Qwen2, tied, MLP": ({"family": "qwen2", "tie_word_embeddings": True}, "mlp"),
    "Qwen3, query and value": ({"family": "qwen3", "head_dim": 16}, "query|value"),
    "Qwen3, the head": ({"family": "qwen3"}, "^head$"),
}


def logits(model: Decoder, prompt: np.ndarray) -> np.ndarray:
    """[T, V] of one causal pass."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def full(params, tokens):
        model, length = nnx.merge(graphdef, params), len(prompt)
        causal = jnp.tril(jnp.ones((1, length, length), bool))
        hidden, _ = model(tokens[None], jnp.arange(length)[None],
                          lambda q, k, v, _: (attention(q, k, v, causal), None))  # fmt: skip
        return model.logits(hidden[0])

    return np.asarray(full(params, jnp.asarray(prompt)))


def export(base: Path, pattern: str, folder: Path, size: float) -> None:
    """An adapter folder with random factors, `size` times those of training's start."""
    params = nnx.state(load_model(base))
    start = lora.starting_adapters(params, pattern, RANK, jax.random.key(0))
    rng = np.random.default_rng(0)
    adapters = {
        path: LowRank(a, jnp.asarray(size * rng.normal(size=b.shape), jnp.float32))
        for path, (a, b) in start.items()
    }
    peft.save_adapter(folder, adapters, ALPHA, str(base.absolute()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity.compare_peft",
                                     description=__doc__)  # fmt: skip
    parser.add_argument("--peft-python", required=True, help="interpreter that has peft")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="also adapt this model folder"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        root, rng = Path(scratch), np.random.default_rng(0)
        rows: list[tuple[str, Path, Path]] = []
        for i, (name, (settings, pattern)) in enumerate(CASES.items()):
            base = tiny_model_folder(root / f"base{i}", seed=i, **settings)
            export(base, pattern, root / f"adapter{i}", size=0.2)
            rows.append((name, base, root / f"adapter{i}"))
        for base in options.model:
            export(base, "attention|mlp", root / base.name, size=0.01)
            rows.append((f"{base.name}, all but the head", base, root / base.name))
        prompts = {f"prompt_{i}": rng.integers(3, 300, size=80) for i in range(len(rows))}
        given, result = root / "prompts.npz", root / "result.npz"
        np.savez(given, **prompts)
        script = Path(__file__).with_name("logits_peft.py")
        command = [options.peft_python, script, given, result, *(row[2] for row in rows)]
        subprocess.run([str(part) for part in command], check=True)
        with np.load(result) as theirs:
            return 0 if report(rows, prompts, dict(theirs)) else 1


def report(rows: list, prompts: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    torch, transformers, version = theirs["versions"]
    print(
        f"jax {jax.__version__} against torch {torch}, transformers {transformers}, peft "
        f"{version}; float32 on the CPU.\n\n"
        "| Model and layers | Largest change by the adapter | Difference, attached "
        "| Difference, merged | |\n|---|--:|--:|--:|---|"
    )
    agrees = True
    for i, (name, base, folder) in enumerate(rows):
        params = nnx.state(load_model(base))
        adapters, scale = peft.load_adapter(folder, params)
        merged = nnx.merge(nnx.graphdef(load_model(base)), lora.merged(params, adapters, scale))
        attached = lora.attached(load_model(base), jax.tree.map(jnp.asarray, adapters), scale)
        wanted, prompt = theirs[f"logits_{i}"], prompts[f"prompt_{i}"]
        change = np.abs(wanted - theirs[f"base_{i}"]).max()
        errors = [np.abs(logits(model, prompt) - wanted).max() for model in (attached, merged)]
        passes = max(errors) <= TOLERANCE and change > 0.1
        agrees &= passes
        print(f"| {name} | {change:.1f} | {errors[0]:.1e} | {errors[1]:.1e} "
              f"| {'PASS' if passes else 'FAIL'} |", flush=True)  # fmt: skip
    return bool(agrees)


if __name__ == "__main__":
    sys.exit(main())
