"""The weight files of a model folder: safetensors, single or split into shards with an index.

Tensors are read and written one at a time, so neither direction holds a whole model twice.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fst_jax.errors import ModelError
from fst_jax.models.files import file_in, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LONGEST_INDEX = 64 << 20  # bytes
# The dtypes of ordinary checkpoints, by their names in safetensors headers.
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class TensorFolder:
    """Read access to every tensor of a folder by name, whichever file it lies in.

    `shapes` and `dtypes` come from the headers alone, which are checked against the size of their
    file before anything is read.  Raises ModelError for a folder without safetensors, an index
    that names a missing file or one elsewhere, a damaged file or a quantised dtype.
    """

    def __init__(self, folder: Path):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._files: dict[str, Any] = {}
        self._open = contextlib.ExitStack()
        for file in _weight_files(folder):
            with _damage_named(file):
                opened = self._open.enter_context(safe_open(file, framework="numpy"))
                for name in opened.keys():
                    header = opened.get_slice(name)
                    self.shapes[name] = tuple(header.get_shape())
                    if header.get_dtype() not in DTYPES:
                        raise ModelError(
                            f"{file}: tensor {name} has dtype {header.get_dtype()}; convert the "
                            f"model to one of {', '.join(DTYPES)}."
                        )
                    self.dtypes[name] = DTYPES[header.get_dtype()]
                    self._files[name] = opened

    def __enter__(self) -> "TensorFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read(self, name: str) -> np.ndarray:
        """The tensor in the file's dtype."""
        return self._files[name].get_tensor(name)


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read ({error}): download it again.") from error


def _weight_files(folder: Path) -> list[Path]:
    single = file_in(folder, SINGLE)
    if single is not None:
        return [single]
    index = file_in(folder, INDEX, _LONGEST_INDEX)
    if index is None:
        raise ModelError(
            f"{folder} holds neither {SINGLE} nor {INDEX}: add the model's safetensors weights."
        )
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is damaged ({error!r}): download it again.") from error
    files = []
    for name in names:
        file = file_in(folder, name)
        if file is None:
            raise ModelError(f"{index} names {name}, which is missing: download it again.")
        files.append(file)
    return files


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], np.ndarray],
    max_shard_bytes: int,
) -> None:
    """Write the tensors named in `sizes` (bytes of each) in that order.

    `read(name)` gives a tensor when its turn comes.  More than `max_shard_bytes` in all makes
    several files and an index, as transformers lays them out; a tensor is never divided.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: np.ascontiguousarray(read(name)) for name in names}
        # transformers refuses files that do not state a format; this is the one all tools write.
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # save_file lets only the owner read; servers must, too
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
