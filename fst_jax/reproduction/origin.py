"""Which checkpoint a second task starts from: RL's and FST's at matched reward or matched steps.

The paper compares checkpoints of its choice.  Here the level of matched reward is 95 % of the
smaller of both arms' peaks on the first task, each under its own context; an arm's checkpoint is
the export nearest to the evaluation that first reaches it.  Matched steps are the last step of
which both arms have an export.
"""

from collections.abc import Mapping
from pathlib import Path

from fst_jax.errors import RunError
from fst_jax.reporting import runs as records

LEVEL = 0.95


def export(arm: str, match: str, folders: Mapping[str, Path]) -> Path:
    """The model folder to start from.

    Args:
      arm: one of `folders`.
      match: "reward" or "step".
      folders: by arm, the finished runs on the first task, of one seed.

    Raises:
      RunError: an arm has no exports, or none in common, or its evaluations cannot be read.
    """
    steps = {name: exported(folder) for name, folder in folders.items()}
    if match == "step":
        common = set.intersection(*map(set, steps.values()))
        if not common:
            raise RunError(f"{', '.join(map(str, folders.values()))} have no export in common")
        step = max(common)
    else:
        curves = {
            name: [(e.step, e.mean_at_k) for e in records.read(folder).curve() if e.step > 0]
            for name, folder in folders.items()
        }
        crossing = first_reaching(arm, curves)
        step = min(steps[arm], key=lambda step: (abs(step - crossing), step))
    return folders[arm] / "exports" / str(step)


def first_reaching(arm: str, curves: Mapping[str, list[tuple[int, float]]]) -> int:
    """The step at which an arm first reaches 95 % of the smaller peak of (step, reward) curves."""
    level = LEVEL * min(max(reward for _, reward in curve) for curve in curves.values())
    return next(step for step, reward in curves[arm] if reward >= level)


def exported(folder: Path) -> list[int]:
    """The steps whose weights a run has kept, in order.

    Raises:
      RunError: there are none.
    """
    names = (path.parent.name for path in (folder / "exports").glob("*/config.json"))
    steps = sorted(int(name) for name in names if name.isdigit())
    if not steps:
        raise RunError(f"{folder} has no exports/: remove the folder to run it again")
    return steps
