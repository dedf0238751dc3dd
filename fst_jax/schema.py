"""The settings as a flat table, dotted key → type, default and help, and values of those types.

Decoding is strict: null only where a setting is optional, true and false are no numbers, and text
is text.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import draccus

from fst_jax.config import Config


class Mismatch(Exception):
    """A value is not of its setting's type; the message says what was expected."""


@dataclass(frozen=True)
class Setting:
    """One setting of the config."""

    hint: Any
    default: Any
    help: str

    @property
    def is_mapping(self) -> bool:
        """Whether its entries can be set one by one."""
        return get_origin(self.hint) is dict

    @property
    def is_optional(self) -> bool:
        """Whether null is a value of it."""
        return NoneType in get_args(self.hint)

    @property
    def is_text(self) -> bool:
        """Whether it takes free text or one of some words."""
        union = get_origin(self.hint) in (UnionType, Union)
        kinds = get_args(self.hint) if union else (self.hint,)
        return any(kind is str or get_origin(kind) is Literal for kind in kinds)

    @property
    def expected(self) -> str:
        """Its type in words."""
        return _in_words(self.hint)

    def decode(self, raw: Any) -> Any:
        """`raw` as this setting's type; draccus converts, after a check stricter than its own.

        Raises:
          Mismatch: saying what was expected.
        """
        message = f"expected {self.expected}, not {_shown(raw)}"
        try:
            if _fits(self.hint, raw):
                return draccus.decode(self.hint, raw)
        except (draccus.utils.DecodingError, RecursionError) as error:
            raise Mismatch(message) from error
        raise Mismatch(message)


@cache
def settings() -> dict[str, Setting]:
    """Every setting by its dotted key, in the order of the dataclasses."""
    return dict(_settings_of(Config, ""))


@cache
def sections() -> tuple[str, ...]:
    """The names of the sections, in the same order."""
    return tuple(dict.fromkeys(key.split(".")[0] for key in settings() if "." in key))


def owner(name: str) -> str | None:
    """The key that `name` is, or of whose mapping it names an entry."""
    if name in settings():
        return name
    mappings = (key for key, setting in settings().items() if setting.is_mapping)
    return next((key for key in mappings if name.startswith(f"{key}.")), None)


def nearest(name: str) -> str | None:
    """The valid key most like `name`, whose section may be missing or wrong."""
    section, _, last = name.rpartition(".")
    if section in settings():
        return section

    def likeness(key: str) -> float:
        key_section, _, key_last = key.rpartition(".")
        like = difflib.SequenceMatcher(None, last, key_last).ratio()
        return like + 0.1 if key_section == section else like

    best = max([*settings(), *sections()], key=likeness)
    return best if likeness(best) >= 0.75 else None


def build(values: dict[str, Any]) -> Config:
    """The Config with the given settings by dotted key, the rest at their defaults."""
    top = {key: value for key, value in values.items() if "." not in key}
    hints = get_type_hints(Config)
    for section in sections():
        prefix = f"{section}."
        inner = {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}
        top[section] = hints[section](**inner)
    return Config(**top)


def _settings_of(kind: type, prefix: str) -> Iterator[tuple[str, Setting]]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        key, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            yield from _settings_of(hint, f"{key}.")  # type: ignore[arg-type]
        else:
            factory = field.default_factory
            default = field.default if factory is MISSING else factory()
            yield key, Setting(hint, default, field.metadata["help"])


def _fits(hint: Any, raw: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return any(_fits(kind, raw) for kind in arguments)
    if origin is Literal:
        return any(raw == value and type(raw) is type(value) for value in arguments)
    if origin is dict:
        return isinstance(raw, dict) and all(
            _fits(str, key) and _fits(arguments[1], value) for key, value in raw.items()
        )
    if hint is Any:
        return _is_plain(raw)
    if hint is float:
        return type(raw) in (int, float) and raw == raw
    if hint is str:
        return isinstance(raw, str) and _is_unicode(raw)
    return type(raw) is hint


def _is_plain(raw: Any) -> bool:
    if isinstance(raw, dict):
        return _fits(dict[str, Any], raw)
    if isinstance(raw, list):
        return all(map(_is_plain, raw))
    return raw is None or isinstance(raw, bool) or _fits(float, raw) or _fits(str, raw)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates: bytes of an argument that were no UTF-8
        return False
    return True


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return " or ".join(_in_words(kind) for kind in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is dict:
        return f"a mapping with {_in_words(arguments[1])} for each name"
    words: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        NoneType: "null",
        Any: "any value",
    }
    return words[hint]


def _shown(raw: Any) -> str:
    """A value as a message shows it: like YAML, and not longer than a line."""
    text = json.dumps(raw, ensure_ascii=not _is_plain(raw), default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"
