"""A user's own task: a Python file or module with one class.

The class itself makes and renders problems in this process; its `score` runs in
worker processes, since it may hang or crash on what a model writes.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError, UserError
from fst_jax.tasks.options import check_options
from fst_jax.tasks.task import Message, Problem, Score, Split, Task
from fst_jax.tasks.worker import CallCrashed, CallOverMemory, CallTimeout, Workers

_SIMPLER = "Write the final answer in its simplest form."


class UserTask:
    """The task of `task.entry_point`, with its scorer kept apart."""

    def __init__(self, settings: TaskSettings):
        self._task = build(settings)
        self.name: str = self._task.name
        self.seed_prompt: str = self._task.seed_prompt
        self._timeout_s, self._memory_gb = settings.timeout_s, settings.memory_gb
        self._workers = Workers(
            "fst_jax.tasks.entry_point:Scorer", settings, memory_gb=settings.memory_gb
        )

    def problems(self, split: Split) -> Sequence[Problem]:
        """The user's problems."""
        return self._task.problems(split)

    def render(self, problem: Problem) -> list[Message]:
        """The user's messages."""
        return self._task.render(problem)

    def score(self, problem: Problem, text: str) -> Score:
        """The user's score; the scorer's time-outs and crashes, and where it runs out of memory,
        are categories of their own.

        Raises what the user's code raised: the exception's name and message.
        """
        try:
            return Score(*self._workers.call("score", problem, text, timeout_s=self._timeout_s))
        except CallTimeout:
            detail = f"The scorer took longer than {self._timeout_s:g} s and was stopped."
            return Score(0.0, f"{_SIMPLER}\n{detail}", "timeout")
        except CallOverMemory:
            detail = f"The scorer needed more than {self._memory_gb:g} GB of memory."
            return Score(0.0, f"{_SIMPLER}\n{detail}", "out of memory")
        except CallCrashed as error:
            return Score(0.0, f"{_SIMPLER}\nThe scorer crashed: {error}.", "scorer crashed")


class Scorer:
    """The user's task in a worker process, with scores as JSON."""

    def __init__(self, settings: TaskSettings):
        self._task = build(settings)

    def score(self, problem: Problem, text: str) -> list[Any]:
        """[reward, feedback, category]."""
        score = self._task.score(problem, text)
        if not isinstance(score, Score):
            raise TaskError(
                f"task {self._task.name}: score() must return fst_jax.tasks.task.Score, "
                f"not {type(score).__name__}"
            )
        return [float(score.reward), str(score.feedback), str(score.category)]


def build(settings: TaskSettings) -> Task:
    """An instance of the class that `settings.entry_point` names."""
    entry_point = settings.entry_point or ""
    where = f"task.entry_point = {entry_point}"
    source, colon, name = entry_point.rpartition(":")
    if not (source and colon and name.isidentifier()):
        raise TaskError(f"{where}: write package.module:Class or path/to/file.py:Class")
    module = _load(source, where)
    constructor: Any = getattr(module, name, None)
    if not inspect.isclass(constructor):
        classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
        own = [n for n in classes if getattr(module, n).__module__ == module.__name__]
        raise TaskError(f"{where}: no class {name!r}; it defines {', '.join(own) or 'no class'}")
    methods = ("problems", "render", "score")
    missing = [m for m in methods if not callable(getattr(constructor, m, None))]
    if missing:
        raise TaskError(f"{where}: class {name} lacks the method {missing[0]}(); see tasks/task.py")
    check_options(constructor, settings.options, name)
    try:
        task = cast(Task, constructor(**settings.options))
    except UserError:
        raise
    except Exception as error:
        raise TaskError(f"{where}: {name}() raised {type(error).__name__}: {error}") from error
    for attribute in ("name", "seed_prompt"):
        if not isinstance(getattr(task, attribute, None), str):
            raise TaskError(f"{where}: class {name} needs a text attribute {attribute!r}")
    return task


def _load(source: str, where: str) -> ModuleType:
    """Import a module by name, with the working folder on the path, or a file."""
    try:
        if source.endswith(".py"):
            return _load_file(Path(source), where)
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        importlib.invalidate_caches()
        return importlib.import_module(source)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (source == error.name or source.startswith(f"{error.name}.")):
            raise TaskError(
                f"{where}: no module {source!r} in {Path.cwd()} or among the installed packages"
            ) from error
        raise TaskError(f"{where}: it imports {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"{where}: importing it raised {type(error).__name__}: {error}") from error


def _load_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"{where}: no file {path} (from {Path.cwd()})")
    name = f"fst_user_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # under the same name in every process, for pickles
    sys.path.insert(0, str(path.parent.absolute()))  # its neighbours can be imported
    spec.loader.exec_module(module)
    return module
