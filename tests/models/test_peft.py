"""Adapter folders: PEFT's layout, there and back, merged by the command, and what is refused."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fst_jax.convert import main
from fst_jax.errors import ModelError
from fst_jax.models import lora, peft
from fst_jax.models.huggingface import load_model
from fst_jax.models.lora import LowRank
from tests.helpers import tiny_model_folder
from tests.parity import compare_peft

RANK, ALPHA = 3, 12.0


def random_adapters(params, pattern=""):
    rng = np.random.default_rng(0)
    start = lora.starting_adapters(params, pattern, RANK, jax.random.key(0))
    return {
        path: LowRank(*(jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) for x in factors))
        for path, factors in start.items()
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("peft") / "base", "llama", layers=3)


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    params = nnx.state(load_model(base))
    peft.save_adapter(tmp_path / "adapter", random_adapters(params), ALPHA, str(base))
    return tmp_path / "adapter"


def test_the_files_are_pefts(adapter, base):
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["task_type"] == "CAUSAL_LM"
    assert settings["r"] == RANK and settings["lora_alpha"] == ALPHA
    assert settings["base_model_name_or_path"] == str(base)
    modules = [
        "down_proj",
        "gate_proj",
        "k_proj",
        "lm_head",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert settings["target_modules"] == modules
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 2 * (3 * 7 + 1)
    params = random_adapters(nnx.state(load_model(base)))
    for layer in range(3):
        prefix = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_"
        a, b = tensors[f"{prefix}A.weight"], tensors[f"{prefix}B.weight"]
        assert a.shape == (RANK, 64) and b.shape == (32, RANK)
        np.testing.assert_array_equal(a.T, params["layers/mlp/down"].a[layer])
        np.testing.assert_array_equal(b.T, params["layers/mlp/down"].b[layer])
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (300, RANK)


@pytest.mark.parametrize("pattern", ["", "query|value", "^head"])
def test_there_and_back(base, tmp_path, pattern):
    params = nnx.state(load_model(base))
    wanted = random_adapters(params, pattern)
    peft.save_adapter(tmp_path / "x", wanted, ALPHA, "org/name")
    assert peft.base_of(tmp_path / "x") == "org/name"
    found, scale = peft.load_adapter(tmp_path / "x", params)
    assert scale == ALPHA / RANK
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_command_merges(adapter, base, tmp_path):
    assert main([str(adapter), str(tmp_path / "merged")]) == 0
    found = nnx.state(load_model(tmp_path / "merged"))
    params = nnx.state(load_model(base))
    wanted = lora.merged(params, random_adapters(params), ALPHA / RANK)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert {x.name for x in (tmp_path / "merged").iterdir()} == {x.name for x in base.iterdir()}


def change(**settings):
    def apply(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return apply


def drop_one(folder):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"]
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(peft_type="IA3"), "not plain LoRA"),
        (change(use_dora=True), "not plain LoRA.*use_dora"),
        (change(rank_pattern={"q_proj": 2}), "not plain LoRA.*rank_pattern"),
        (change(init_lora_weights="pissa"), "not plain LoRA.*init_lora_weights"),
        (change(r=RANK + 1), "does not fit the model"),
        (drop_one, "does not fit the model.*down_proj"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "lacks .*lora_alpha"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "cannot be read"),
    ],
)
def test_what_is_refused(adapter, base, damage, message):
    damage(adapter)
    with pytest.raises(ModelError, match=message):
        peft.base_of(adapter)
        peft.load_adapter(adapter, nnx.state(load_model(base)))


def test_an_adapter_of_a_smaller_model_is_refused(adapter, tmp_path):
    other = tiny_model_folder(tmp_path / "other", "llama", layers=4)
    with pytest.raises(ModelError, match="does not fit the model"):
        peft.load_adapter(adapter, nnx.state(load_model(other)))


@pytest.mark.slow
def test_peft_computes_the_same_logits():
    """`tests/parity/compare_peft.py`, whose PEFT lives in an environment of its own."""
    python = os.environ.get("FST_JAX_PEFT_PYTHON")
    if python is None:
        pytest.skip("NOT compared with PEFT: FST_JAX_PEFT_PYTHON must name a Python that has peft")
    assert compare_peft.main(["--peft-python", python]) == 0
