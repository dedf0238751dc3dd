"""What comes with the package beside its code: the configs, and the model of the small world.

A path below configs/ that does not exist here stands for the copy in the package, so that
`--config configs/quickstart.yaml` means the same without a repository.  What exists here comes
first, and no other path is ever looked for elsewhere.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent

# Models by name.
MODELS = {"fst-tiny": _PACKAGE / "small_world" / "fst-tiny"}


def found(path: Path) -> Path:
    """`path`, or where it does not exist the package's copy of `configs/…`, if there is one."""
    if path.exists() or path.is_absolute() or path.parts[:1] != ("configs",) or ".." in path.parts:
        return path
    copy = _PACKAGE / path
    return copy if copy.exists() else path
