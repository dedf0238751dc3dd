"""Tiny models for tests: configurations and complete folders, made on the fly without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fst_jax.models.config import ModelConfig
from fst_jax.tasks.task import Score

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEXT = "system user assistant the path from node 1 to node 23 is 4,5,6. Answer: yes or no?"


def tiny_config(
    family: str = "qwen3",
    vocab_size: int = 300,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    **config_overrides: Any,
) -> dict[str, Any]:
    """The config.json of a tiny model of the family."""
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    } | config_overrides


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a folder of this architecture holds."""
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        for name, outputs, inputs, bias in (
            ("self_attn.q_proj", heads, hidden, config.attention_bias),
            ("self_attn.k_proj", kv_heads, hidden, config.attention_bias),
            ("self_attn.v_proj", kv_heads, hidden, config.attention_bias),
            ("self_attn.o_proj", hidden, heads, config.output_bias),
            ("mlp.gate_proj", inner, hidden, config.mlp_bias),
            ("mlp.up_proj", inner, hidden, config.mlp_bias),
            ("mlp.down_proj", hidden, inner, config.mlp_bias),
        ):
            shapes[f"{layer}{name}.weight"] = (outputs, inputs)
            if bias:
                shapes[f"{layer}{name}.bias"] = (outputs,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (hidden,)
        if config.qk_norm:
            shapes |= {f"{layer}self_attn.{x}_norm.weight": (head_dim,) for x in "qk"}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights large enough that every part of the model shows in the logits."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * 0.2 + ("norm" in name)).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE tokenizer with ChatML's special tokens and template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHATML)


def tiny_model_folder(
    path: str | Path,
    family: str = "qwen3",
    vocab_size: int = 300,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """Write a complete model folder with random float32 weights at `path`; returns it.

    `vocab_size` must be at least 259: the bytes and three special tokens.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    hf = tiny_config(
        family, vocab_size, hidden, layers, heads, kv_heads, head_dim, **config_overrides
    )
    (folder / "config.json").write_text(json.dumps(hf, indent=2))
    tensors = random_tensors(ModelConfig.from_hf(hf), seed)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, vocab_size)
    generation = {"eos_token_id": [2], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


class Echo:
    """A task without problems, which rewards what a problem's data say."""

    name, seed_prompt = "echo", "Answer."

    def problems(self, split):
        return []

    def render(self, problem):
        return [{"role": "user", "content": problem.question}]

    def score(self, problem, text):
        return Score(problem.data["reward"], text, "any")
