"""GGUF files to folders: tensors, tokenizer, settings, and what is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from fst_jax.convert import main
from fst_jax.errors import ModelError
from fst_jax.models.attention import attention
from fst_jax.models.config import ModelConfig
from fst_jax.models.folder import load_config, load_tokenizer
from fst_jax.models.gguf import GGUFModel
from fst_jax.models.huggingface import load_model
from tests.helpers import CHATML, random_tensors, tiny_config, tiny_model_folder, write_tokenizer

SMOLLM2 = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
needs_smollm2 = pytest.mark.skipif(
    not SMOLLM2.is_dir(), reason=f"needs {SMOLLM2}: run `make models` to get it"
)
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
         "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}  # fmt: skip


def interleave(value: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rows: the two halves of each head, taken in turn."""
    out = np.empty_like(value)
    size = len(value) // heads
    for head in range(heads):
        for i in range(size // 2):
            for half in range(2):
                row = head * size + half * (size // 2) + i
                out[head * size + 2 * i + half] = value[row]
    return out


def gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, *module, leaf = name.split(".")
        if module[-1] in ("input_layernorm", "post_attention_layernorm"):
            theirs = "attn_norm" if module[-1] == "input_layernorm" else "ffn_norm"
        else:
            theirs = NAMES[module[-1].removesuffix("_proj")]
        return f"blk.{layer}.{theirs}.{leaf}"
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, leaf = name.rpartition(".")
    return f"{whole[module]}.{leaf}"


def write_gguf(
    folder: Path,
    hf: dict[str, Any],
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    quantization: gguf.GGMLQuantizationType | None = None,
    metadata: dict[str, Any] | None = None,
    skip: str = "",
    extra: str = "",
) -> Path:
    """A GGUF file of a tiny random model, written as llama.cpp's converter would."""
    file = folder / "tiny.gguf"
    config = ModelConfig.from_hf(hf)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(config.head_dim)
    for key, value in (metadata or {}).items():
        add = writer.add_string if isinstance(value, str) else (
            writer.add_uint32 if isinstance(value, int) else writer.add_float32)  # fmt: skip
        add(key, value)
    write_tokenizer(folder, config.vocab_size)
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([control] * 3 + [normal] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHATML)
    for name, value in random_tensors(config).items():
        for projection, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            if f"self_attn.{projection}_proj" in name:
                value = interleave(value, heads)
        if name == skip:
            continue
        if quantization and value.ndim == 2:
            packed = gguf.quants.quantize(value, quantization)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=quantization)
        else:
            writer.add_tensor(gguf_name(name), value)
    if extra:
        writer.add_tensor(extra, np.full(4, 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def llama(**changes: Any) -> dict[str, Any]:
    return tiny_config("llama", rms_norm_eps=1e-5, **changes)


@pytest.mark.parametrize("tied", [False, True])
def test_gguf_tensors_and_settings(tmp_path, tied):
    hf = llama(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    out = tmp_path / "out"
    assert main([str(write_gguf(tmp_path, hf)), str(out)]) == 0
    config = load_config(out)
    assert config == ModelConfig.from_hf(hf)
    written, want = load_file(out / "model.safetensors"), random_tensors(config)
    assert written.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(written[name], want[name])
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2], "pad_token_id": 0}
    load_model(out)


def test_gguf_tokenizer(tmp_path):
    out = tmp_path / "out"
    assert main([str(write_gguf(tmp_path, llama())), str(out)]) == 0
    tokenizer, original = load_tokenizer(out), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.chat_template == CHATML
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    for text in ("the path from node is yes<|im_end|>\n", "naïve 日本 \t x"):
        ids = tokenizer(text)["input_ids"]
        assert ids == original.encode(text).ids
        assert tokenizer.decode(ids) == text
    digits = tokenizer("node 23")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(digits)[-2:] == ["2", "3"]


def test_llama3_splits_numbers_by_three_and_starts_with_bos(tmp_path):
    model = GGUFModel(write_gguf(tmp_path, llama(), pre="llama-bpe"))
    model.write_companions(tmp_path)
    encoded = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("12345 it's\n\nx")
    assert encoded.ids[0] == 1
    pieces = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer
    words = [word for word, _ in pieces.pre_tokenize_str("12345 it's\n\nx")]
    assert words == ["123", "45", "Ġit", "'s", "ĊĊ", "x"]


@pytest.mark.parametrize(
    ("scaling", "metadata"),
    [
        ({"rope_type": "linear", "factor": 4.0},
         {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
         {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
          "llama.rope.scaling.original_context_length": 128}),
    ],
)  # fmt: skip
def test_gguf_rope_scaling(tmp_path, scaling, metadata):
    hf = llama(rope_scaling=scaling)
    model = GGUFModel(write_gguf(tmp_path, hf, metadata=metadata))
    assert model.config == ModelConfig.from_hf(hf)


def test_gguf_in_a_wheel_is_dequantised(tmp_path):
    hf = llama(tie_word_embeddings=True)
    file = write_gguf(tmp_path, hf, quantization=gguf.GGMLQuantizationType.Q8_0)
    wheel = tmp_path / "model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "package/tiny.gguf")
        archive.writestr("package/__init__.py", "")
    out = tmp_path / "out"
    assert main([str(wheel), str(out), "--dtype", "bfloat16"]) == 0
    written = load_file(out / "model.safetensors")
    for name, want in random_tensors(ModelConfig.from_hf(hf)).items():
        assert written[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(written[name].astype(np.float32), want, atol=0.02)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_hugging_face_folder_is_saved_again(tmp_path):
    source = tiny_model_folder(tmp_path / "a", "qwen2")
    assert main([str(source), str(tmp_path / "b"), "--max-shard-gb", "0.00005"]) == 0
    written = {}
    for file in (tmp_path / "b").glob("*.safetensors"):
        written |= load_file(file)
    for name, want in load_file(source / "model.safetensors").items():
        np.testing.assert_array_equal(written[name], want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2'"),
        ({"pre": "exotic"}, "pre-tokenizer 'exotic'.*smollm"),
        ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"llama.rope.scaling.type": "longrope",
                       "llama.rope.scaling.factor": 2.0}}, "'longrope'"),
        ({"extra": "rope_freqs.weight"}, "table of factors"),
        ({"extra": "blk.0.ffn_gate_inp.weight"}, "ffn_gate_inp"),
        ({"skip": "model.norm.weight"}, "lack.*model.norm.weight"),
        ({"skip": "model.embed_tokens.weight"}, "token_embd.weight"),
    ],
)  # fmt: skip
def test_refused_gguf(tmp_path, capsys, options, message):
    file = write_gguf(tmp_path, llama(), **options)
    assert main([str(file), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(ModelError, match=message):
        raise ModelError(error)
    assert not (tmp_path / "out").exists()


def test_refused_sources_and_destinations(tmp_path, capsys):
    (tmp_path / "x.gguf").write_bytes(b"not a model, though long enough for a header")
    (tmp_path / "x.zip").write_bytes(b"PK")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for source, message in (
        ("x.gguf", "not a readable GGUF"),
        ("missing.gguf", "not a readable GGUF"),
        ("x.zip", "not a readable zip"),
        ("empty.zip", "holds 0 .gguf files"),
        ("nowhere", "no model folder"),
    ):
        assert main([str(tmp_path / source), str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert main([str(tmp_path / "x.gguf"), str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


@needs_smollm2
def test_smollm2_settings():
    config = load_config(SMOLLM2)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (30, 9, 3)
    assert config.rope.theta == 100_000 and config.tie_word_embeddings


@needs_smollm2
def test_smollm2_tokenizer():
    tokenizer = load_tokenizer(SMOLLM2)
    assert len(tokenizer) == 49152 and tokenizer.eos_token == "<|im_end|>"
    text = "<|im_start|>user\nHow much is 12 + 34?<|im_end|>\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[0] == "<|im_start|>" and tokens[-2] == "<|im_end|>"
    assert ["1", "2"] == tokens[tokens.index("1") : tokens.index("1") + 2]


@needs_smollm2
def test_smollm2_knows_the_capital_of_france():
    tokenizer, (graphdef, params) = load_tokenizer(SMOLLM2), nnx.split(load_model(SMOLLM2))

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ids += tokenizer("The capital of France is")["input_ids"]
    positions, mask = jnp.arange(len(ids))[None], jnp.tril(jnp.ones((1, len(ids), len(ids)), bool))

    @jax.jit
    def last_logits(params):
        model = nnx.merge(graphdef, params)
        hidden, _ = model(
            jnp.asarray(ids)[None], positions, lambda q, k, v, _: (attention(q, k, v, mask), None)
        )
        return model.logits(hidden[0, -1])

    assert tokenizer.decode(int(last_logits(params).argmax())) == " Paris"
