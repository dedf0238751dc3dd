"""Folders in and out: identical bytes, and one clear sentence for every damaged folder."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fst_jax.errors import ModelError
from fst_jax.models.config import ModelConfig
from fst_jax.models.huggingface import load_model, save_model, tensor_shapes
from tests import helpers
from tests.helpers import tiny_config, tiny_model_folder

WEIGHTS = "model.safetensors"


def rewrite(folder, change):
    """Apply `change` to the folder's dictionary of tensors."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def tensors_of(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in found.items()}


def resave(source, destination, **options):
    model = load_model(source)
    save_model(destination, nnx.state(model), model.config, source, **options)
    return destination


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_round_trip_is_byte_faithful(tmp_path, family, tied):
    source = tiny_model_folder(tmp_path / "a", family, tie_word_embeddings=tied, layers=11)
    copy = resave(source, tmp_path / "b")
    assert {file.name for file in copy.iterdir()} == {file.name for file in source.iterdir()}
    for file in source.iterdir():
        if file.name != WEIGHTS:
            assert (copy / file.name).read_bytes() == file.read_bytes()
    assert tensors_of(copy) == tensors_of(source)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_round_trip_keeps_each_dtype(tmp_path, dtype):
    source = tiny_model_folder(tmp_path / "a")

    def lower_all_but_norms(tensors):
        for name in tensors:
            if "norm" not in name:
                tensors[name] = tensors[name].astype(dtype)

    rewrite(source, lower_all_but_norms)
    assert tensors_of(resave(source, tmp_path / "b")) == tensors_of(source)


def test_sharded_round_trip(tmp_path):
    source = tiny_model_folder(tmp_path / "a", layers=3)
    limit = 40_000
    sharded = resave(source, tmp_path / "b", max_shard_bytes=limit)
    files = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    for file in files:
        tensors = load_file(sharded / file)
        assert len(tensors) == 1 or sum(x.nbytes for x in tensors.values()) <= limit
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load_file(source / WEIGHTS))
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in load_file(source / WEIGHTS).values()
    )
    assert tensors_of(sharded) == tensors_of(source)
    assert tensors_of(resave(sharded, tmp_path / "c")) == tensors_of(source)


def test_a_tied_head_is_stored_if_the_source_stores_it(tmp_path):
    source = tiny_model_folder(tmp_path / "a", "qwen2", tie_word_embeddings=True)

    def store_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    rewrite(source, store_head)
    assert tensors_of(resave(source, tmp_path / "b")) == tensors_of(source)


def test_casting_is_written_into_the_config(tmp_path):
    source = tiny_model_folder(tmp_path / "a")
    low = resave(source, tmp_path / "b", dtype=jnp.bfloat16)
    assert {dtype.name for dtype, _, _ in tensors_of(low).values()} == {"bfloat16"}
    before, after = (json.loads((x / "config.json").read_text()) for x in (source, low))
    assert after == before | {"torch_dtype": "bfloat16"}


def test_load_casts_and_places(tmp_path):
    source = tiny_model_folder(tmp_path)
    placed = []

    def place(path, value):
        placed.append(path)
        return jax.device_put(value * 2)

    plain, doubled = load_model(source), load_model(source, param_dtype="bfloat16", place=place)
    assert "layers/mlp/gate/kernel" in placed
    leaves = zip(*map(jax.tree.leaves, (nnx.state(plain), nnx.state(doubled))), strict=True)
    for one, two in leaves:
        assert two.dtype == jnp.bfloat16
        np.testing.assert_array_equal(one.astype(jnp.bfloat16) * 2, two)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_tensor_shapes(family):
    config = ModelConfig.from_hf(tiny_config(family, head_dim=16, layers=3))
    assert tensor_shapes(config) == helpers.tensor_shapes(config)


def test_frequency_tables_of_old_checkpoints_are_ignored(tmp_path):
    source = tiny_model_folder(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(source, lambda tensors: tensors.update({name: np.ones(4, np.float32)}))
    load_model(source)


def drop(name):
    return lambda folder: rewrite(folder, lambda tensors: tensors.pop(name))


def put(name, shape, dtype=np.float32):
    return lambda folder: rewrite(
        folder, lambda tensors: tensors.update({name: np.ones(shape, dtype)})
    )


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def break_index(folder):
    (folder / WEIGHTS).unlink()
    write("model.safetensors.index.json", '{"weight_map": {"x": "gone.safetensors"}}')(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("model.norm.weight"), r"lack 1 tensor\(s\) model.norm.weight"),
        (drop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
        (put("model.extra.weight", (2,)), r"unexpected 1 tensor\(s\) model.extra.weight"),
        (put("model.layers.2.mlp.up_proj.weight", (64, 32)), "unexpected"),
        (put("model.norm.weight", (33,)), r"model.norm.weight.*\[33\].*\[32\]"),
        (put("lm_head.weight", (32, 300)), r"lm_head.weight.*\[32, 300\].*\[300, 32\]"),
        (put("model.norm.weight", (32,), np.int8), "model.norm.weight has dtype I8.*BF16"),
        (lambda folder: (folder / WEIGHTS).unlink(), "neither model.safetensors nor"),
        (write(WEIGHTS, "not a model"), "model.safetensors cannot be read"),
        (break_index, "names gone.safetensors, which is missing"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (write("config.json", "{"), "not valid JSON"),
        (write("config.json", "[]"), "JSON object"),
        (write("config.json", '{"model_type": "gpt2"}'), "'gpt2'"),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    folder = tiny_model_folder(tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_index(tmp_path):
    folder = tiny_model_folder(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    write("model.safetensors.index.json", "{}")(folder)
    with pytest.raises(ModelError, match="index.json is damaged"):
        load_model(folder)


def test_a_missing_folder(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        load_model(tmp_path / "nowhere")
