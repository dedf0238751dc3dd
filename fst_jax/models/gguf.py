"""GGUF files (llama.cpp's format) of the Llama family, read as Hugging Face tensors and files.

Weights are dequantised to float32.  llama.cpp interleaves the two halves of every query and
key head for its rotary embedding; that is undone here.  The tokenizer is rebuilt from the
file's vocabulary and merges.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

from fst_jax.errors import ModelError
from fst_jax.models.config import ModelConfig
from fst_jax.models.gguf_header import check_header
from fst_jax.models.huggingface import check_tensors

_MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_THEIRS_TO_OURS = {theirs: ours for ours, theirs in _MODULES.items()}
_CONTROL, _USER_DEFINED = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED

# Llama 3 splits by this expression, published in its tokenizer.json.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


class GGUFModel:
    """One GGUF file: its architecture, its tensors by Hugging Face name, its tokenizer.

    Raises ModelError for a damaged file and for what `Decoder` or `tokenizers` cannot express.
    """

    def __init__(self, file: Path):
        self.file = file
        check_header(file)
        with _damage_named(file):
            self._read_header()

    def _read_header(self) -> None:
        file, reader = self.file, gguf.GGUFReader(self.file)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise ModelError(
                f"{file} holds the architecture {architecture!r}, which is not supported: use a "
                "GGUF file of the llama architecture, or the model's Hugging Face folder."
            )
        self._refuse_unsupported()
        self.config = ModelConfig.from_hf(self._config())
        self.shapes = {
            ours: tuple(int(n) for n in self._tensors[theirs].shape[::-1])
            for theirs in self._tensors
            if (ours := _hugging_face_name(theirs))
        }
        check_tensors(file, self.config, self.shapes)

    def read(self, name: str) -> np.ndarray:
        """The tensor of this Hugging Face name, in its layout, as float32."""
        tensor = self._tensors[_gguf_name(name)]
        try:
            value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.file}: tensor {tensor.name} is quantised as {tensor.tensor_type.name}, "
                "which cannot be read: use a GGUF file with another quantisation."
            ) from error
        value = value.astype(np.float32, copy=False).reshape(self.shapes[name])
        for projection, heads in (("q", self.config.num_heads), ("k", self.config.num_kv_heads)):
            if f".self_attn.{projection}_proj." in name:
                return _uninterleave(value, heads)
        return value

    def config_json(self) -> dict[str, Any]:
        """The dictionary for config.json."""
        return self.config.to_hf() | self._token_ids()

    def write_companions(self, folder: Path) -> None:
        """Write tokenizer, chat template and generation settings into `folder`."""
        with _damage_named(self.file):
            self._write_companions(folder)

    def _write_companions(self, folder: Path) -> None:
        self._tokenizer().save(str(folder / "tokenizer.json"))
        tokens = self._field("tokenizer.ggml.tokens")
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown",
                 "pad_token": "padding"}  # fmt: skip
        ids = {name: self._id(kind) for name, kind in names.items()}
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.config.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
        }
        settings |= {name: tokens[index] for name, index in ids.items() if index is not None}
        _write_json(folder / "tokenizer_config.json", settings)
        template = self._field("tokenizer.chat_template", None)
        if template:
            (folder / "chat_template.jinja").write_text(template, "utf-8")
        stops = {index for kind in ("eos", "eot", "eom") if (index := self._id(kind)) is not None}
        generation = self._token_ids() | {"eos_token_id": sorted(stops)}
        _write_json(folder / "generation_config.json", generation)

    _REQUIRED = object()

    def _field(self, name: str, default: Any = _REQUIRED) -> Any:
        if name in self._fields:
            return self._fields[name].contents()
        if default is self._REQUIRED:
            raise ModelError(f"{self.file} lacks the metadata {name}: use a complete GGUF file.")
        return default

    def _id(self, kind: str) -> int | None:
        return self._field(f"tokenizer.ggml.{kind}_token_id", None)

    def _token_ids(self) -> dict[str, int]:
        kinds = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
        ids = {name: self._id(kind) for name, kind in kinds.items()}
        return {name: index for name, index in ids.items() if index is not None}

    def _refuse_unsupported(self) -> None:
        if self._field("llama.expert_count", 0):
            raise ModelError(
                f"{self.file} is a mixture of experts, which is not supported: use a dense model."
            )
        factors = self._tensors.get("rope_freqs.weight")
        if factors is not None and not np.all(factors.data == 1):
            raise ModelError(
                f"{self.file} scales its rotary embedding by a table of factors (Llama 3.1), from "
                "which the settings cannot be recovered: use the model's Hugging Face folder."
            )
        unknown = [
            name
            for name in self._tensors
            if name != "rope_freqs.weight" and not _hugging_face_name(name)
        ]
        if unknown:
            raise ModelError(
                f"{self.file} holds tensors that a Llama model does not have ({unknown[0]}): use a "
                "GGUF file of a plain Llama model."
            )

    def _config(self) -> dict[str, Any]:
        """The settings under their Hugging Face names."""
        heads = self._field("llama.attention.head_count")
        width = self._field("llama.embedding_length")
        rotated = self._field("llama.rope.dimension_count", width // heads)
        if "token_embd.weight" not in self._tensors:
            raise ModelError(f"{self.file} lacks token_embd.weight: use a complete GGUF file.")
        scaling = None
        kind = self._field("llama.rope.scaling.type", "none")
        if kind != "none":
            scaling = {
                "rope_type": kind,
                "factor": _decimal(self._field("llama.rope.scaling.factor")),
                "original_max_position_embeddings": self._field(
                    "llama.rope.scaling.original_context_length",
                    self._field("llama.context_length"),
                ),
            }
        return {
            "model_type": "llama",
            "vocab_size": int(self._tensors["token_embd.weight"].shape[1]),
            "hidden_size": width,
            "intermediate_size": self._field("llama.feed_forward_length"),
            "num_hidden_layers": self._field("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._field("llama.attention.head_count_kv", heads),
            "head_dim": self._field("llama.attention.key_length", rotated),
            "rms_norm_eps": _decimal(self._field("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _decimal(self._field("llama.rope.freq_base", 10_000.0)),
            "rope_scaling": scaling,
            "max_position_embeddings": self._field("llama.context_length"),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._tensors,
        }

    def _tokenizer(self) -> Tokenizer:
        kind, pre = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre", None)
        if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
            raise ModelError(
                f"{self.file} has a tokenizer of model {kind!r} and pre-tokenizer {pre!r}, which "
                "cannot be rebuilt: use a byte-level BPE model (gpt2) with pre-tokenizer "
                f"{', '.join(_PRE_TOKENIZERS)}, or the model's Hugging Face folder."
            )
        tokens = self._field("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in self._field("tokenizer.ggml.merges")]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        llama3 = pre == "llama-bpe"
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=llama3))
        tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
        tokenizer.decoder = decoders.ByteLevel()
        types = self._field("tokenizer.ggml.token_type")
        for token, type_ in zip(tokens, types, strict=True):
            added = AddedToken(token, special=type_ == _CONTROL, normalized=False)
            if type_ == _CONTROL:
                tokenizer.add_special_tokens([added])
            elif type_ == _USER_DEFINED:
                tokenizer.add_tokens([added])
        bos = self._id("bos")
        if bos is not None and self._field("tokenizer.ggml.add_bos_token", llama3):
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{tokens[bos]} $A",
                pair=f"{tokens[bos]} $A {tokens[bos]} $B",
                special_tokens=[(tokens[bos], bos)],
            )
        return tokenizer


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """A ModelError for whatever metadata of wrong types and sizes make Python raise."""
    try:
        yield
    except (ModelError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(f"{file} is not a readable GGUF file ({reason}).") from error


def _hugging_face_name(name: str) -> str | None:
    """`model.layers.3.mlp.up_proj.weight` for `blk.3.ffn_up.weight`; None if there is none."""
    module, _, leaf = name.rpartition(".")
    prefix = ""
    if module.startswith("blk."):
        _, layer, module = module.split(".", 2)
        prefix = f"model.layers.{layer}."
    return f"{prefix}{_THEIRS_TO_OURS[module]}.{leaf}" if module in _THEIRS_TO_OURS else None


def _gguf_name(name: str) -> str:
    """The inverse of `_hugging_face_name`."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{_MODULES[module]}.{leaf}"
    _, _, layer, module = module.split(".", 3)
    return f"blk.{layer}.{_MODULES[module]}.{leaf}"


def _uninterleave(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows (0, 1, 2, 3, ...) of each head to (0, 2, ..., 1, 3, ...): halves instead of pairs."""
    pairs = value.reshape(heads, -1, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def _decimal(value: float) -> float:
    """The float that was meant by a stored float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
