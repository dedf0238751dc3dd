"""What config.json files say, in both spellings, and what is refused."""

import pytest

from fst_jax.errors import ModelError
from fst_jax.models.config import ModelConfig
from fst_jax.models.rope import Rope
from tests.helpers import tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def test_reads_sizes():
    config = ModelConfig.from_hf(tiny_config("qwen3", head_dim=16))
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.head_dim, config.hidden_size, config.intermediate_size) == (16, 32, 64)
    assert hash(config) == hash(ModelConfig.from_hf(tiny_config("qwen3", head_dim=16)))


def test_biases_and_norms_of_the_families():
    qwen2 = ModelConfig.from_hf(tiny_config("qwen2"))
    assert qwen2.attention_bias and not qwen2.output_bias and not qwen2.qk_norm
    qwen3 = ModelConfig.from_hf(tiny_config("qwen3", attention_bias=True))
    assert qwen3.attention_bias and qwen3.output_bias and qwen3.qk_norm and not qwen3.mlp_bias
    llama = ModelConfig.from_hf(tiny_config("llama", attention_bias=True, mlp_bias=True))
    assert llama.attention_bias and llama.output_bias and llama.mlp_bias and not llama.qk_norm


def test_defaults_of_absent_settings():
    hf = tiny_config("llama")
    for key in ("head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps", "hidden_act"):
        del hf[key]
    config = ModelConfig.from_hf(hf | {"head_dim": None})
    assert (config.head_dim, config.num_kv_heads) == (8, 4)
    assert (config.rope, config.rms_norm_eps) == (Rope(), 1e-6)


@pytest.mark.parametrize(
    ("scaling", "rope"),
    [
        (None, Rope(theta=5e5)),
        ({"rope_type": "default"}, Rope(theta=5e5)),
        ({"type": "linear", "factor": 2}, Rope("linear", 5e5, 2.0)),
        (LLAMA3, Rope("llama3", 5e5, 8.0, 256)),
        (YARN, Rope("yarn", 5e5, 4.0, 128)),
        (YARN | {"beta_fast": 16, "mscale": 0.5}, Rope("yarn", 5e5, 4.0, 128, beta_fast=16.0,
                                                      mscale=0.5)),
        ({"rope_type": "yarn", "original_max_position_embeddings": 128, "factor": None},
         Rope("yarn", 5e5, 4.0, 128)),
        (LLAMA3 | {"original_max_position_embeddings": None}, Rope("llama3", 5e5, 8.0, 512)),
    ],
)  # fmt: skip
def test_both_spellings_of_rope(scaling, rope):
    old = ModelConfig.from_hf(tiny_config(rope_theta=5e5, rope_scaling=scaling))
    hf = tiny_config(rope_parameters={"rope_theta": 5e5} | (scaling or {}))
    del hf["rope_theta"]
    assert old.rope == rope
    assert ModelConfig.from_hf(hf) == old


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2}, LLAMA3, YARN])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_to_hf_is_the_inverse(family, scaling):
    config = ModelConfig.from_hf(tiny_config(family, rope_scaling=scaling))
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2'.*llama, qwen2, qwen3"),
        ({"model_type": None}, "llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "'gelu'.*'silu'"),
        ({"vocab_size": None}, "lacks 'vocab_size'"),
        ({"hidden_size": "32"}, "hidden_size.*positive integer.*'32'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"head_dim": 7}, "even"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'.*yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor'.*'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "sliding"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_hf(tiny_config() | change)


def test_an_idle_sliding_window_is_no_obstacle():
    hf = tiny_config(use_sliding_window=False, sliding_window=64, max_window_layers=0)
    assert ModelConfig.from_hf(hf) == ModelConfig.from_hf(tiny_config())
    hf = tiny_config(use_sliding_window=True, sliding_window=64, max_window_layers=2)
    assert ModelConfig.from_hf(hf) == ModelConfig.from_hf(tiny_config())
