"""python -m fst_jax.replay: compute the loss of a saved step again.

    python -m fst_jax.replay runs/quickstart/nonfinite/120

A run that stops over a loss that is not finite leaves that step's minibatches and rollouts in
nonfinite/<step>/ of its folder (see `slow/offending.py`).  This reads the run's config, takes the
weights of its newest checkpoint, which are those that the loss was of, makes the step once more and
prints its metrics.  The run's folder stays as it is.
"""

import argparse
import sys
from pathlib import Path

from fst_jax.errors import RunError
from fst_jax.lock import Lock
from fst_jax.parts import load_weights, make_learner, read_inputs
from fst_jax.run_folder import by_step
from fst_jax.settings import command, load_file
from fst_jax.slow.learner import Learner
from fst_jax.slow.offending import load
from fst_jax.state import Checkpoints


def replay(folder: Path) -> dict[str, float]:
    """The metrics of the step that was saved in `folder`, under the newest checkpoint's weights.

    Raises:
      RunError: it is not such a folder, or the run has no checkpoint.
    """
    try:
        minibatches = load(folder)
    except FileNotFoundError as error:
        raise RunError(f"{error}: name the folder nonfinite/<step> of a run") from error
    run = folder.absolute().parents[1]
    newest = by_step(run / "checkpoints")[-1:]
    if [path.name for path in newest] != [folder.absolute().name]:
        raise RunError(
            f"{run} has gone on since step {folder.name}, and the weights of that step are gone: "
            "look at the saved rollouts, or copy the folder of a run before it goes on"
        )
    return learner_of(run).step(*minibatches)


def learner_of(run: Path) -> Learner:
    """The learner of the run in a folder, in the state of its newest checkpoint.

    Raises:
      RunError: there is no checkpoint, its weights were not trained, or it is running.
    """
    config = load_file(run / "config.yaml")
    inputs = read_inputs(config)
    learner = make_learner(config, inputs, load_weights(config, inputs))
    if learner is None:
        raise RunError(f"{run} is of a run without a learner: slow.enabled was false")
    lock = Lock(run)  # a run's unfinished checkpoint would be tidied up
    checkpoints = Checkpoints(run / "checkpoints", config.checkpoint)
    saved = checkpoints.restore(learner.saved)
    checkpoints.close()
    lock.release()
    if saved is None:
        raise RunError(f"{run} has no checkpoint")
    learner.restore(saved.arrays)
    return learner


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fst_jax.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="nonfinite/<step> in the folder of a run")
    for name, value in replay(parser.parse_args(arguments).folder).items():
        print(f"{name:16}{value:.6g}")


if __name__ == "__main__":
    sys.exit(command(main))
