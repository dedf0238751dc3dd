"""Weights between Hugging Face folders and `Decoder`, byte for byte in both directions.

The two layouts differ in three ways, all in this file: names, kernels (ours are [in, out],
theirs [out, in]) and layers (ours are stacked, theirs one tensor each).
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from fst_jax.config import Remat
from fst_jax.errors import ModelError
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder
from fst_jax.models.folder import copy_companions, load_config, read_config_file
from fst_jax.models.publishing import publish
from fst_jax.models.shards import TensorFolder, write_shards
from fst_jax.parallel.distributed import is_main, whole
from fst_jax.parallel.sharding import path_of

_HEAD = "lm_head.weight"
_MODULES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layers/input_norm": "model.layers.{}.input_layernorm",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj",
    "layers/attention/query_norm": "model.layers.{}.self_attn.q_norm",
    "layers/attention/key_norm": "model.layers.{}.self_attn.k_norm",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm",
    "layers/mlp/gate": "model.layers.{}.mlp.gate_proj",
    "layers/mlp/up": "model.layers.{}.mlp.up_proj",
    "layers/mlp/down": "model.layers.{}.mlp.down_proj",
}
Place = Callable[[str, np.ndarray], jax.Array]  # a parameter's path and value, onto devices
_MAX_SHARD_BYTES = 5 * 10**9  # what transformers writes by default


def tensor_names(path: str, shape: tuple[int, ...]) -> list[str]:
    """The tensors that make up one parameter: one per layer if it is stacked."""
    module, _, leaf = path.rpartition("/")
    pattern = _MODULES[module or path] + (".bias" if leaf == "bias" else ".weight")
    return [pattern.format(i) for i in range(shape[0])] if "{}" in pattern else [pattern]


def load_model(
    folder: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    remat: Remat = "none",
    place: Place | None = None,
) -> Decoder:
    """The decoder of a local folder, read one parameter at a time.

    `dtype` is the compute dtype; `param_dtype=None` keeps the dtypes of the file.
    `place(path, value)` puts each parameter onto devices (default: the default device), e.g.
    by its sharding.  Raises ModelError for missing, unexpected or misshapen tensors.
    """
    folder = Path(folder)
    config = load_config(folder)
    graphdef, abstract = nnx.split(
        nnx.eval_shape(lambda: Decoder(config, dtype=dtype, remat=remat, rngs=nnx.Rngs(0)))
    )
    with TensorFolder(folder) as tensors:
        check_tensors(folder, config, tensors.shapes)

        def load(keys: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            path = path_of(keys)
            value = _assemble(path, leaf.shape, tensors, param_dtype)
            return jnp.asarray(value) if place is None else place(path, value)

        params = jax.tree_util.tree_map_with_path(load, abstract)
    return nnx.merge(graphdef, params)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Hugging Face folder of this architecture."""
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    shapes: dict[str, tuple[int, ...]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model)):
        path = path_of(keys)
        part = leaf.shape[1:] if path.startswith("layers/") else leaf.shape
        part = part[::-1] if path.endswith("/kernel") else part
        shapes |= dict.fromkeys(tensor_names(path, leaf.shape), part)
    return shapes


def check_tensors(origin: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError unless `shapes` are the tensors of the architecture, no more, no less.

    A stored copy of a tied head and the frequency tables of old checkpoints are allowed.
    """
    expected = tensor_shapes(config)
    surplus = {name for name in shapes if not name.endswith(".rotary_emb.inv_freq")}
    surplus -= expected.keys()
    if config.tie_word_embeddings:
        surplus.discard(_HEAD)
    for problem, names in (
        ("lack", expected.keys() - shapes.keys()),
        ("hold the unexpected", surplus),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise ModelError(
                f"The weights of {origin} {problem} {len(names)} tensor(s) {listed}: use the "
                "weights that belong to its configuration."
            )
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise ModelError(
                f"Tensor {name} of {origin} has shape {list(shapes[name])}, but its configuration "
                f"asks for {list(shape)}: use the weights that belong to it."
            )


def _assemble(
    path: str,
    shape: tuple[int, ...],
    tensors: TensorFolder,
    dtype: DTypeLike | None,
) -> np.ndarray:
    """One parameter on the host, in our layout."""
    names = tensor_names(path, shape)
    stacked, transposed = path.startswith("layers/"), path.endswith("/kernel")
    # Layers of different dtypes get the one that holds all of them exactly.
    dtype = dtype or np.result_type(*{tensors.dtypes[name] for name in names})
    value = np.empty(shape if stacked else (1, *shape), dtype)
    for slot, name in zip(value, names, strict=True):
        tensor = tensors.read(name)
        slot[...] = tensor.T if transposed else tensor
    return value if stacked else value[0]


def save_model(
    folder: str | Path,
    params: nnx.State,
    config: ModelConfig,
    source_folder: str | Path,
    *,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> None:
    """Write parameters (the state of `nnx.split(model)`) as a complete Hugging Face folder.

    config.json, tokenizer, chat template and generation settings come from `source_folder`;
    a tied head is written if the source stores it.  `dtype=None` keeps the dtypes of the
    parameters.  An existing `folder` is replaced once the new one is complete.  Every process of
    a run of several calls this; process 0 writes.
    """
    folder, source = Path(folder), Path(source_folder)
    parts: dict[str, tuple[str, jax.Array, int | None]] = {}
    for keys, value in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(keys)
        names = tensor_names(path, value.shape)
        for i, name in enumerate(names):
            parts[name] = (path, value, i if path.startswith("layers/") else None)
    if config.tie_word_embeddings and any(source.glob("*.safetensors")):
        with TensorFolder(source) as tensors:
            if _HEAD in tensors.shapes:
                parts[_HEAD] = parts[_MODULES["embedding"] + ".weight"]

    def size(name: str) -> int:
        _, value, layer = parts[name]
        count = value.size if layer is None else value.size // value.shape[0]
        return count * jnp.dtype(dtype or value.dtype).itemsize

    def read(name: str) -> np.ndarray:
        path, value, layer = parts[name]
        tensor = whole(value if layer is None else value[layer])
        tensor = tensor.T if path.endswith("/kernel") else tensor
        return tensor.astype(dtype or tensor.dtype, copy=False)

    order = sorted(parts, key=_natural)
    if not is_main():
        for name in order:
            read(name)  # takes part in gathering what process 0 writes
        return
    with publish(folder) as partial:
        write_shards(partial, {name: size(name) for name in order}, read, max_shard_bytes)
        embedding = next(value for path, value, _ in parts.values() if path == "embedding")
        _write_config(source, partial, jnp.dtype(dtype or embedding.dtype).name)
        copy_companions(source, partial)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts layer 10 after layer 9, so that shards hold neighbouring layers."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part)
            for part in re.split(r"(\d+)", name)]  # fmt: skip


def _write_config(source: Path, destination: Path, dtype: str) -> None:
    """The source's config.json, unchanged unless it names another dtype than was written."""
    hf = read_config_file(source)
    key = "dtype" if "dtype" in hf else "torch_dtype"  # transformers 5 and before
    if hf.get(key) == dtype:
        shutil.copyfile(source / "config.json", destination / "config.json")
        return
    text = json.dumps(hf | {key: dtype}, indent=2) + "\n"
    (destination / "config.json").write_text(text, "utf-8")
