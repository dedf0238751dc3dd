"""Adapters in the format of Hugging Face's PEFT: a folder that `peft.PeftModel` loads.

adapter_config.json says rank, α, which modules and which base; adapter_model.safetensors holds
lora_A [r, in] and lora_B [out, r] of each module, one pair a layer.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fst_jax.errors import ModelError
from fst_jax.models.files import LONGEST_JSON, file_in, read_json
from fst_jax.models.huggingface import tensor_names
from fst_jax.models.lora import Adapters, LowRank, linear_layers
from fst_jax.models.publishing import publish
from fst_jax.parallel.distributed import is_main, whole

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT wraps the model twice
# Variants of LoRA that compute something else, as adapter_config.json switches them on.
_VARIANTS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save",
             "fan_in_fan_out", "lora_bias", "trainable_token_indices", "alora_invocation_tokens",
             "target_parameters", "layer_replication")  # fmt: skip
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")


def save_adapter(folder: Path, adapters: Adapters, alpha: float, base: str) -> None:
    """Write adapters for PEFT; an existing `folder` is replaced once the new one is complete.

    `base` is the folder or the hub name of the model that they correct.  Every process of a run of
    several calls this; process 0 writes.
    """
    tensors: dict[str, np.ndarray] = {}
    for path, factors in adapters.items():
        for letter, value in zip("AB", map(whole, factors), strict=True):
            names = _names(path, value.shape, letter)
            each = value if path.startswith("layers/") else value[None]
            tensors |= {n: np.ascontiguousarray(x.T) for n, x in zip(names, each, strict=True)}
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in tensors}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": next(iter(adapters.values())).a.shape[-1],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(modules),
        "inference_mode": True,
    }
    if not is_main():
        return
    with publish(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / WEIGHTS).chmod(0o644)  # save_file lets only the owner read


def base_of(folder: Path) -> str:
    """The model that an adapter corrects, as its maker named it: a folder or a hub name.

    Raises:
      ModelError: the folder is damaged or no plain LoRA.
    """
    return str(_settings(folder)["base_model_name_or_path"])


def load_adapter(folder: Path, params: Any) -> tuple[Adapters, float]:
    """Read an adapter, ours or another's, for a decoder with these parameters.

    Returns float32 arrays on the host, and the scale α / r.

    Raises:
      ModelError: it is damaged, no plain LoRA, or does not fit the decoder in every layer.
    """
    settings = _settings(folder)
    rank = settings["r"]
    weights = file_in(folder, WEIGHTS)
    try:
        tensors = load_file(weights or folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read ({error}): make it again.") from error
    adapters: Adapters = {}
    for path, shape in linear_layers(params).items():
        factors = []
        for letter, size in (("A", (rank, shape[-2])), ("B", (shape[-1], rank))):
            names = _names(path, shape, letter)
            if all(name in tensors and tensors[name].shape == size for name in names):
                each = np.stack([tensors.pop(name).T.astype(np.float32) for name in names])
                factors.append(each if len(shape) == 3 else each[0])
        if len(factors) == 2:
            adapters[path] = LowRank(*factors)
    if tensors or not adapters:
        listed = ", ".join(sorted(tensors)[:3]) or "none"
        raise ModelError(
            f"{folder} does not fit the model; tensors without a place: {listed}. Adapters must "
            "correct the same linear layers all through the model, and the model they were made for"
        )
    return adapters, float(settings["lora_alpha"]) / rank


def _settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json, checked."""
    settings = read_json(file_in(folder, CONFIG, LONGEST_JSON) or folder / CONFIG)
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / CONFIG} does not hold a JSON object: make it again.")
    missing = {"peft_type", "r", "lora_alpha", "base_model_name_or_path"} - settings.keys()
    if missing:
        raise ModelError(f"{folder / CONFIG} lacks {', '.join(sorted(missing))}: add them.")
    rank, alpha = settings["r"], settings["lora_alpha"]
    if type(rank) is not int or not 1 <= rank < 1 << 24:
        raise ModelError(f"{folder / CONFIG}: r must be a positive integer, not {rank!r:.60}.")
    if type(alpha) not in (int, float) or not 0 < alpha < 1e30:
        raise ModelError(f"{folder / CONFIG}: lora_alpha must be above 0, not {alpha!r:.60}.")
    used = [name for name in _VARIANTS if settings.get(name)]
    if settings.get("init_lora_weights", True) not in (True, False, *_PLAIN_STARTS):
        used.append("init_lora_weights")  # such starts, as PiSSA, change the base too
    if settings["peft_type"] != "LORA" or settings.get("bias", "none") != "none" or used:
        raise ModelError(
            f"{folder} is not plain LoRA without biases, which alone is supported: "
            f"{settings['peft_type']} {' '.join(used)}"
        )
    return settings


def _names(path: str, shape: tuple[int, ...], letter: str) -> list[str]:
    """The tensors of one factor, one per layer if it is stacked."""
    modules = (name.removesuffix(".weight") for name in tensor_names(f"{path}/kernel", shape))
    return [f"{_PREFIX}{module}.lora_{letter}.weight" for module in modules]
