"""The files of a model folder: found where they belong, and read within bounds.

A folder may come from anybody.  Its files lie in the folder itself; a symbolic link may lead to
another place within it or, as in the cache of the Hugging Face hub, from `snapshots/<revision>/`
to the `blobs/` beside it.  One that leads anywhere else is refused: its target would be read, and
copied into exports, as if it were the model's.  Names that a file gives for others (the index of
weights) are plain names, without a folder.
"""

import json
from pathlib import Path
from typing import Any

from fst_jax.errors import ModelError

LONGEST_JSON = 16 << 20  # bytes of a config.json or the like; real ones have thousands


def file_in(folder: Path, name: str, longest: int | None = None) -> Path | None:
    """The file of this name, if the folder has one; at most `longest` bytes.

    Raises:
      ModelError: it leads out of the folder, is too large, or the name is not a plain one.
    """
    if not _is_plain(name):
        raise ModelError(f"{folder} names a file {name!r:.80}, which is not a plain file name.")
    path = folder / name
    if not path.is_file():
        return None
    home, target = folder.resolve(), path.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(target.is_relative_to(place) for place in allowed):
        raise ModelError(
            f"{path} is a link to a file outside of its model folder: put a copy in its place."
        )
    size = path.stat().st_size
    if longest is not None and size > longest:
        raise ModelError(
            f"{path} has {size} bytes, more than the {longest} that such a file may have: check "
            "where it comes from."
        )
    return path


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      ModelError: it cannot be read, is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: not valid JSON ({error}); repair it.") from error


def _is_plain(name: object) -> bool:
    """Whether a name can only mean a file in the folder."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name not in (".", "..")
        and not set(name) & set("/\\\0")
    )
