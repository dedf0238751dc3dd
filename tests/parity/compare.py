"""Parity with transformers on torch: `python -m tests.parity.compare --torch-python PYTHON`.

PYTHON is an interpreter with torch, transformers and safetensors; torch is never imported here.
Prints a markdown table, and exits with 1 if a row fails: every greedy continuation must be the
same, token for token, and every float32 logit must agree with transformers' to 1e-4.  The same
weights run in float64 by torch show how much of a difference is rounding.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fst_jax.models.attention import attention
from fst_jax.models.decoder import Decoder
from fst_jax.models.folder import load_tokenizer
from fst_jax.models.huggingface import load_model
from tests.helpers import tiny_model_folder

CONTINUATION = 64
TOLERANCE = 1e-4  # absolute, on every logit
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, dict[str, Any]] = {
    "Llama": {"family": "llama"},
    "Llama, llama3 rope": {"family": "llama", "rope_theta": 5e5, "rope_scaling": _LLAMA3},
    "Llama, linear rope": {
        "family": "llama",
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "Llama, yarn rope": {"family": "llama", "rope_scaling": _YARN},
    "Llama, attention and MLP biases": {
        "family": "llama",
        "attention_bias": True,
        "mlp_bias": True,
    },
    "Qwen2, tied": {"family": "qwen2", "tie_word_embeddings": True},
    "Qwen2, untied, yarn rope": {"family": "qwen2", "rope_scaling": _YARN},
    "Qwen3, head_dim 16 of hidden 32 / 4 heads": {"family": "qwen3", "head_dim": 16},
    "Qwen3, attention bias, tied": {
        "family": "qwen3",
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
}
QUESTION = "Why does the moon look bigger near the horizon?"


def greedy(model: Decoder, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prompt [T] with its greedy continuation, and the logits [T + 64, V] of all of it.

    One token at a time with a cache, as a sampler would, then the logits in one full pass.
    """
    config, length = model.config, len(prompt) + CONTINUATION
    graphdef, params = nnx.split(model)
    shape = (config.num_layers, 1, length, config.num_kv_heads, config.head_dim)

    @jax.jit
    def step(params, cache, token, index):
        def attend(query, key, value, layer):
            layer = [c.at[:, index].set(x[:, 0]) for c, x in zip(layer, (key, value), strict=True)]
            return attention(query, *layer, (jnp.arange(length) <= index)[None, None]), layer

        model = nnx.merge(graphdef, params)
        hidden, cache = model(token[None, None], index[None, None], attend, cache)
        return model.logits(hidden[0, 0]).argmax(), cache

    @jax.jit
    def full(params, tokens):
        model = nnx.merge(graphdef, params)
        causal = jnp.tril(jnp.ones((1, length, length), bool))
        hidden, _ = model(tokens[None], jnp.arange(length)[None],
                          lambda q, k, v, _: (attention(q, k, v, causal), None))  # fmt: skip
        return model.logits(hidden[0])

    cache = [jnp.zeros(shape, jnp.float32)] * 2
    tokens = list(prompt)
    for index in range(length - 1):
        token, cache = step(params, cache, jnp.asarray(tokens[index]), jnp.asarray(index))
        if index + 1 >= len(prompt):
            tokens.append(int(token))
    return np.array(tokens), np.asarray(full(params, jnp.asarray(tokens)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity.compare", description=__doc__)
    parser.add_argument("--torch-python", required=True, help="interpreter that has torch")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="also compare this model folder"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folders, prompts, names = [], {}, []
        rng = np.random.default_rng(0)
        for i, (name, settings) in enumerate(CASES.items()):
            folders.append(tiny_model_folder(Path(scratch) / str(i), seed=i, **settings))
            prompts[f"prompt_{i}"] = rng.integers(3, 300, size=80)
            names.append(name)
        for folder in options.model:
            messages = [{"role": "user", "content": QUESTION}]
            chat = load_tokenizer(folder).apply_chat_template(messages, add_generation_prompt=True)
            prompts[f"prompt_{len(folders)}"] = np.array(chat["input_ids"])
            folders.append(folder)
            names.append(folder.name)
        given, result = Path(scratch) / "prompts.npz", Path(scratch) / "result.npz"
        np.savez(given, continuation=CONTINUATION, **prompts)
        script = Path(__file__).with_name("logits_torch.py")
        command = [options.torch_python, script, given, result, *folders]
        subprocess.run([str(part) for part in command], check=True)
        with np.load(result) as theirs:
            agrees = _report(names, folders, prompts, dict(theirs))
    return 0 if agrees else 1


def _report(
    names: list[str], folders: list[Path], prompts: dict, theirs: dict[str, np.ndarray]
) -> bool:
    torch, transformers = theirs["versions"]
    print(
        f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__} "
        f"against torch {torch}, transformers {transformers}; float32 on the CPU.\n\n"
        "| Model | Largest logit | Difference | Ours to float64 | Torch to float64 "
        "| Equal greedy tokens | |\n|---|--:|--:|--:|--:|--:|---|"
    )
    agrees = True
    for i, (name, folder) in enumerate(zip(names, folders, strict=True)):
        prompt = prompts[f"prompt_{i}"]
        tokens, logits = greedy(load_model(folder), prompt)
        equal = tokens[len(prompt) :] == theirs[f"tokens_{i}"][len(prompt) :]
        exact, peer = theirs[f"exact_{i}"], theirs[f"logits_{i}"]
        pairs = ((logits, peer), (logits, exact), (peer, exact))
        errors = [np.abs(a - b).max() for a, b in pairs]
        largest = np.abs(exact).max()
        passes = bool(equal.all() and errors[0] <= TOLERANCE)
        agrees &= passes
        cells = " | ".join(f"{error:.1e}" for error in errors)
        cells += f" | {equal.sum()} of {CONTINUATION} | {'PASS' if passes else 'FAIL'} |"
        print(f"| {name} | {largest:.1f} | {cells}", flush=True)
    return agrees


if __name__ == "__main__":
    sys.exit(main())
