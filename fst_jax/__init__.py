"""fst_jax: Fast-Slow Training for language models in JAX.

Slow weights (the model's parameters, trained by reinforcement learning) and
fast weights (a pool of context prompts, evolved by reflection) learn together.
The algorithm is in `fst_jax/train.py`; each folder is one idea of the paper
(arXiv 2605.12484).

    config = fst_jax.load_config("configs/small_world.yaml", {"train.steps": 24})
    with fst_jax.Run(config) as run:
        for step in run:
            print(step.number, step.metrics["reward_mean"], run.pool.active_prompts[0].text)

The names below are the Python interface; what they need is imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fst_jax.config import Config as Config
    from fst_jax.errors import UserError as UserError
    from fst_jax.fast.pool import Pool as Pool
    from fst_jax.fast.pool import Prompt as Prompt
    from fst_jax.reporting.runs import read as read_run  # noqa: F401
    from fst_jax.settings import load_file as load_config  # noqa: F401
    from fst_jax.tasks.task import Problem as Problem
    from fst_jax.tasks.task import Score as Score
    from fst_jax.tasks.task import Task as Task
    from fst_jax.tracking import Tracker as Tracker
    from fst_jax.train import Run as Run
    from fst_jax.train import Step as Step

__version__ = "0.1.0"

_HOMES = {
    "Config": "config.Config",
    "Pool": "fast.pool.Pool",
    "Problem": "tasks.task.Problem",
    "Prompt": "fast.pool.Prompt",
    "Run": "train.Run",
    "Score": "tasks.task.Score",
    "Step": "train.Step",
    "Task": "tasks.task.Task",
    "Tracker": "tracking.Tracker",
    "UserError": "errors.UserError",
    "load_config": "settings.load_file",
    "read_run": "reporting.runs.read",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, _, attribute = _HOMES[name].rpartition(".")
        return getattr(import_module(f"fst_jax.{module}"), attribute)
    raise AttributeError(f"module fst_jax has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
