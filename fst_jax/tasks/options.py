"""`task.options` against the constructor that they are the arguments of."""

import difflib
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from fst_jax.errors import TaskError


def check_options(
    constructor: type, options: Mapping[str, Any], task: str, reserved: tuple[str, ...] = ()
) -> None:
    """Raise TaskError for an unknown, missing or mistyped option.

    `reserved` are arguments that the options may not set.
    """
    parameters = inspect.signature(constructor).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [
        name
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in reserved
    ]
    hints = _hints(constructor)
    for name, value in options.items():
        if name not in known:
            if takes_any and name not in reserved:
                continue
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise TaskError(f"task.options: {task} has no option {name!r}: {hint}{has}")
        if name in hints and not _fits(value, hints[name]):
            raise TaskError(
                f"task.options.{name}: {task} needs {_describe(hints[name])}, "
                f"not {value!r} ({type(value).__name__})"
            )
    missing = [n for n in known if parameters[n].default is inspect.Parameter.empty]
    missing = [name for name in missing if name not in options]
    if missing:
        raise TaskError(f"task.options: {task} needs {', '.join(missing)}")


def _hints(constructor: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(constructor.__init__)  # type: ignore[misc]
    except Exception:  # annotations that cannot be resolved: not checked
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value`, as it comes from YAML, is of the type; unknown types accept all."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    plain = origin or hint
    return not isinstance(plain, type) or plain not in _PLAIN or isinstance(value, plain)


def _describe(hint: Any) -> str:
    if hint is None or hint is type(None):
        return "null"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return getattr(typing.get_origin(hint) or hint, "__name__", str(hint))


_PLAIN = (bool, str, list, dict)
