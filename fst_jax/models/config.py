"""The architecture of a model: what `config.json` of a Hugging Face folder says, checked.

`ModelConfig` is frozen and hashable, so that it can be a static argument of jitted code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from fst_jax.errors import ModelError
from fst_jax.models.rope import Rope, RopeKind

Family = Literal["llama", "qwen2", "qwen3"]
FAMILIES: tuple[str, ...] = get_args(Family)
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What the config classes of transformers assume when config.json leaves these out.
_DEFAULT_THETA = 10_000.0
_DEFAULT_LENGTH = {"llama": 2048, "qwen2": 32768, "qwen3": 32768}
_QWEN3_HEAD_DIM = 128
# Far above any model's, and small enough to be counted and listed.
_LARGEST, _MOST_LAYERS, _HIGHEST = 1 << 24, 1 << 12, 1e30


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one decoder.

    `attention_bias` puts a bias on query, key and value; `output_bias` on the attention's
    output projection; `mlp_bias` on the three projections of the MLP.  `qk_norm` normalises
    queries and keys per head before the rotary embedding.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope = dataclasses.field(default_factory=Rope)
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    max_position_embeddings: int = 2048

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "ModelConfig":
        """Read the dictionary of a `config.json`.

        Accepts what transformers 5 writes (`rope_parameters`) and what older versions write
        (`rope_theta` and `rope_scaling`).  Raises ModelError for anything that this decoder
        would compute differently from transformers.
        """
        family = hf.get("model_type")
        if family not in FAMILIES:
            raise ModelError(
                f"config.json has model_type {_shown(family)}, which is not supported: use a model "
                f"of type {', '.join(FAMILIES)}."
            )
        _refuse_unsupported(hf)
        hidden_size = _size(hf, "hidden_size")
        num_heads = _size(hf, "num_attention_heads")
        num_kv_heads = _size(hf, "num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise ModelError(
                f"num_attention_heads {num_heads} in config.json must be a multiple of "
                f"num_key_value_heads {num_kv_heads}."
            )
        default_head_dim = _QWEN3_HEAD_DIM if family == "qwen3" else hidden_size // num_heads
        head_dim = _size(hf, "head_dim", default_head_dim)
        if head_dim % 2:
            raise ModelError(f"head_dim {head_dim} in config.json must be even.")
        length = _size(hf, "max_position_embeddings", _DEFAULT_LENGTH[family])
        bias = bool(hf.get("attention_bias", False))
        return cls(
            family=family,
            vocab_size=_size(hf, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_size(hf, "intermediate_size"),
            num_layers=_size(hf, "num_hidden_layers", largest=_MOST_LAYERS),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope=_rope(hf, length),
            rms_norm_eps=_number("rms_norm_eps", _or(hf.get("rms_norm_eps"), 1e-6)),
            tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
            # Qwen2 always has these three biases and never one on the output.
            attention_bias=family == "qwen2" or bias,
            output_bias=family != "qwen2" and bias,
            mlp_bias=family == "llama" and bool(hf.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            max_position_embeddings=length,
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this architecture, readable by every version of transformers."""
        hf: dict[str, Any] = {
            "architectures": [_ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope.theta,
            "rope_scaling": _rope_scaling(self.rope),
        }
        if self.family != "qwen2":
            hf["attention_bias"] = self.attention_bias
        if self.family == "llama":
            hf["mlp_bias"] = self.mlp_bias
        return hf


def _size(
    hf: Mapping[str, Any], key: str, default: int | None = None, largest: int = _LARGEST
) -> int:
    """A positive integer of config.json, at most `largest`; null means absent."""
    value = _or(hf.get(key), default)
    if value is None:
        raise ModelError(f"config.json lacks {key!r}: add it.")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise ModelError(
            f"{key} in config.json must be a positive integer of at most {largest}, not "
            f"{_shown(value)}."
        )
    return value


def _number(key: str, value: Any, purpose: str = "") -> float:
    """A positive, finite number of config.json."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < _HIGHEST:
        raise ModelError(
            f"config.json needs a positive number {key!r}{purpose}, not {_shown(value)}."
        )
    return float(value)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _shown(value: Any) -> str:
    return f"{value!r:.60}"


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    activation = hf.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(
            f"config.json has hidden_act {_shown(activation)}, which is not supported: only "
            "'silu' is."
        )
    types = hf.get("layer_types") or []
    if not isinstance(types, list):
        raise ModelError(f"layer_types in config.json must be a list, not {_shown(types)}.")
    windowed = "sliding_attention" in types
    # Without layer_types, Qwen slides its window in the layers from max_window_layers on.
    if hf.get("use_sliding_window") and hf.get("sliding_window") and not hf.get("layer_types"):
        first = hf.get("max_window_layers", 28)
        windowed = not isinstance(first, int) or first < _size(hf, "num_hidden_layers")
    if windowed:
        raise ModelError(
            "config.json uses sliding-window attention, which is not supported: use a model "
            "with full attention in every layer (use_sliding_window false)."
        )
    if hf.get("quantization_config"):
        raise ModelError(
            "config.json has a quantization_config, which is not supported: use the model's "
            "float32, bfloat16 or float16 weights."
        )


def _rope(hf: Mapping[str, Any], length: int) -> Rope:
    """Both spellings of the rotary settings, with the defaults of transformers."""
    given: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        settings = hf.get(key) or {}
        if not isinstance(settings, dict):
            raise ModelError(f"{key} in config.json must be an object, not {_shown(settings)}.")
        given.update(settings)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in get_args(RopeKind):
        raise ModelError(
            f"config.json has rope_type {_shown(kind)}, which is not supported: use a model with "
            f"rope_type {', '.join(get_args(RopeKind))}."
        )
    if given.get("partial_rotary_factor", hf.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise ModelError(
            "config.json has a partial_rotary_factor other than 1, which is not supported: use "
            "a model that rotates the whole head."
        )

    def number(name: str, default: float | None = None) -> float:
        value = _or(given.get(name), default)
        return _number(name, value, f" for rope_type {kind!r}")

    def optional(name: str) -> float | None:
        return None if given.get(name) is None else number(name)

    theta = number("rope_theta", hf.get("rope_theta") or _DEFAULT_THETA)
    # transformers gives this one priority where a config has both.
    name = "original_max_position_embeddings"
    outer = hf.get(name)
    original = int(_number(name, outer) if outer else number(name, length))
    match kind:
        case "linear":
            return Rope(kind, theta, number("factor"))
        case "llama3":
            return Rope(
                kind,
                theta,
                number("factor"),
                original,
                low_freq_factor=number("low_freq_factor"),
                high_freq_factor=number("high_freq_factor"),
            )
        case "yarn":
            return Rope(
                kind,
                theta,
                number("factor", length / original),
                original,
                attention_factor=optional("attention_factor"),
                mscale=optional("mscale"),
                mscale_all_dim=optional("mscale_all_dim"),
                beta_fast=number("beta_fast", 32.0),
                beta_slow=number("beta_slow", 1.0),
                truncate=bool(given.get("truncate", True)),
            )
    return Rope(theta=theta)


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
    """The inverse of `_rope`: only the settings that the kind has."""
    settings: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    names: tuple[str, ...] = ()
    match rope.kind:
        case "default":
            return None
        case "linear":
            return settings
        case "llama3":
            names = ("low_freq_factor", "high_freq_factor")
        case "yarn":
            names = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow",
                     "truncate")  # fmt: skip
    settings["original_max_position_embeddings"] = rope.original_length
    values = ((name, getattr(rope, name)) for name in names)
    return settings | {name: value for name, value in values if value is not None}
