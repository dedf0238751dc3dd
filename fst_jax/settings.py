"""From a YAML file and the command line to a Config, with every problem in one message.

    config, flags = load(sys.argv[1:], "train", __doc__, flags={"dry-run": "Only print …"})

A setting on the command line wins over the file: `--slow.learning_rate 3e-6` or
`--slow.learning_rate=3e-6`.  Mappings are merged: `--task.options.arms 5` and
`--task.options '{arms: 5}'` change one entry and leave the others.  Values are read as YAML,
except that a text setting takes its argument as it stands.
"""

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from fst_jax import plain_yaml, schema, shipped
from fst_jax.config import Config
from fst_jax.consistency import problems_found
from fst_jax.errors import ConfigError, UserError
from fst_jax.keys import masked
from fst_jax.plain_yaml import BadYaml

_COMMAND_LINE = "command line"
DEFAULT_CONFIG = "configs/quickstart.yaml"


class _Reader:
    """Gathers the values of a file and of arguments, and every problem with them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self.problems: list[str] = []
        self.suspects: set[str] = set()  # settings whose value is not what the user meant

    def problem(self, place: str, key: str, message: str) -> None:
        self.problems.append(masked(f"{place}: {key}: {message}"))
        self.suspects.add(key)

    def unknown(self, place: str, key: str) -> None:
        """Note an unknown key, with the nearest valid one."""
        if key in schema.sections():
            self.problem(place, key, f"is a section; name one of its settings, as {key}.…")
            return
        near = schema.nearest(key)
        self.problem(place, key, f"unknown setting{f'; did you mean {near}?' if near else ''}")
        self.suspects.add(near or key)

    def put(self, key: str, raw: Any, place: str) -> None:
        try:
            self.values[key] = schema.settings()[key].decode(raw)
        except schema.Mismatch as mismatch:
            self.problem(place, key, str(mismatch))
        self.places[key] = place

    # The file.

    def read_file(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            node = plain_yaml.compose(text)
        except OSError as error:
            raise ConfigError(
                f"cannot read the config file {path}: {error.strerror}; "
                "choose one with --config FILE"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{path}: not a text file in UTF-8") from error
        except BadYaml as bad:
            place = f"{path}:{bad.line}" if bad.line else path
            raise ConfigError(f"{place}: not valid YAML: {bad}") from bad
        if node is None:
            return
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: must hold settings as `key: value` lines")
        self._read_section(node, "", path)

    def _read_section(self, section: yaml.MappingNode, prefix: str, path: Path) -> None:
        seen = set()
        for key_node, node in section.value:
            place = f"{path}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(place, prefix + "?", "a setting's name must be plain text")
                continue
            key = prefix + key_node.value
            if key in seen:
                self.problem(place, key, "given twice; keep one")
            seen.add(key)
            if key in schema.settings():
                self._read_value(key, node, place)
            elif key in schema.sections():
                if isinstance(node, yaml.MappingNode):
                    self._read_section(node, f"{key}.", path)
                elif node.tag != "tag:yaml.org,2002:null":
                    self.problem(place, key, f"is a section: write its settings below `{key}:`")
            else:
                self.unknown(place, key)

    def _read_value(self, key: str, node: yaml.Node, place: str) -> None:
        try:
            # A number where text is wanted stays as it was written: `name: 007`.
            as_text = schema.settings()[key].is_text and node.tag.endswith((":int", ":float"))
            raw = node.value if as_text else plain_yaml.value(node)
        except BadYaml as bad:
            self.problem(place, key, str(bad))
        else:
            self.put(key, raw, place)

    # The command line.

    def read_argument(self, name: str, text: str) -> None:
        """Take in `--name text`."""
        key = schema.owner(name)
        if key is None:
            self.unknown(_COMMAND_LINE, name)
            return
        setting = schema.settings()[key]
        try:
            raw = _argument_value(setting, text)
        except BadYaml as bad:
            self.problem(_COMMAND_LINE, name, f"not valid YAML: {bad}")
            return
        self._merge(key, name, raw, _COMMAND_LINE)

    def change(self, name: str, value: Any, place: str) -> None:
        """Take in a value that is one already."""
        key = schema.owner(name)
        if key is None:
            self.unknown(place, name)
        else:
            self._merge(key, name, value, place)

    def _merge(self, key: str, name: str, raw: Any, place: str) -> None:
        """Put a setting, or the entry `name` of one that is a mapping."""
        for part in reversed(name.removeprefix(key).split(".")[1:]):
            raw = {part: raw}
        base = self.values.get(key, schema.settings()[key].default)
        self.put(key, _merged(base, raw), place)

    def no_value(self, name: str, known: bool) -> None:
        """Note a `--name` at the end of the arguments or before another one."""
        if known or name == "config" or schema.owner(name):
            self.problem(_COMMAND_LINE, name, "needs a value")
        else:
            self.unknown(_COMMAND_LINE, name)

    def config(self) -> Config:
        """The Config, if nothing is wrong.

        Raises:
          ConfigError: with all problems.
        """
        config = schema.build(self.values)
        for key, message in problems_found(config):
            # A consequence of a value that is already complained of is no problem of its own.
            if not any(suspect in f"{key} {message}".split() for suspect in self.suspects):
                place = self.places.get(key, "default")
                self.problems.append(masked(f"{place}: {key}: {message}"))
        if len(self.problems) == 1:
            raise ConfigError(self.problems[0])
        if self.problems:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            raise ConfigError(f"{len(self.problems)} problems in the settings:{lines}")
        return config


def load(
    arguments: Sequence[str],
    command: str,
    description: str,
    default_config: str | Path = DEFAULT_CONFIG,
    flags: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> tuple[Config, dict[str, str]]:
    """The Config of `python -m fst_jax.<command>`, and what else of the command was given: `flags`
    (name → help), which have the value "", and `options`, which take one.

    `--help` prints every setting and exits.

    Raises:
      ConfigError: naming every problem and its file and line.
    """
    flags, options = flags or {}, options or {}
    reader, path, settings = _Reader(), Path(default_config), []
    given: dict[str, str] = {}
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        if argument in ("-h", "--help"):
            print(help_text(command, description, default_config, flags, options))
            raise SystemExit(0)
        if not argument.startswith("--") or not name:
            reader.problem(_COMMAND_LINE, argument, "not a setting; write --section.field VALUE")
        elif name in flags and not equals:
            given[name] = ""
        elif not equals and (not pending or pending[0].startswith("--")):
            reader.no_value(name, known=name in options)
        else:
            text = text if equals else pending.pop(0)
            if name == "config":
                path = Path(text)
            elif name in options:
                given[name] = text
            else:
                settings.append((name, text))
    file = shipped.found(path)
    if file != path:
        print(f"{path} is not here; using {file}", file=sys.stderr)
    reader.read_file(file)
    for name, text in settings:
        reader.read_argument(name, text)
    return reader.config(), given


def load_file(
    path: str | Path = DEFAULT_CONFIG, changes: Mapping[str, Any] | None = None
) -> Config:
    """The Config of a YAML file, with `changes` by dotted key, as {"train.steps": 24}.

    A path configs/… that does not exist here means the file in the package.

    Raises:
      ConfigError: naming every problem and its line.
    """
    reader = _Reader()
    reader.read_file(shipped.found(Path(path)))
    for name, value in (changes or {}).items():
        reader.change(name, value, "changes")
    return reader.config()


def checked(config: Config) -> Config:
    """A Config that was made in code, looked over, types included.

    Raises:
      ConfigError: naming every problem.
    """
    reader = _Reader()
    for key in schema.settings():
        section, _, name = key.rpartition(".")
        reader.put(key, getattr(getattr(config, section) if section else config, name), "Config")
    return reader.config()


def to_yaml(config: Config) -> str:
    """The whole config, defaults included; `load_file` gives it back exactly."""
    return plain_yaml.dump(asdict(config))


def difference(old: Config, new: Config) -> list[str]:
    """One line `key: old → new` for every setting that differs."""
    before, after = dict(_flat(asdict(old))), dict(_flat(asdict(new)))

    def shown(values: dict[str, Any], key: str) -> str:
        return json.dumps(values[key], ensure_ascii=False) if key in values else "unset"

    keys = [key for key in before | after if shown(before, key) != shown(after, key)]
    return [f"{key}: {shown(before, key)} → {shown(after, key)}" for key in keys]


def command(run: Callable[[list[str]], int | None]) -> int:
    """Run a command's main function on the process's arguments and return its exit code.

    A UserError becomes its message on stderr and exit code 2, Ctrl-C a line and 130.
    """
    try:
        return run(sys.argv[1:]) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def answer_help(
    command: str,
    description: str,
    flags: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """Print the help of `load` and exit, if this process was asked for it.

    For the head of a command's file: what it imports after that takes seconds.
    """
    if "--help" in sys.argv[1:] or sys.argv[1:2] == ["-h"]:
        print(help_text(command, description, DEFAULT_CONFIG, flags or {}, options or {}))
        raise SystemExit(0)


def help_text(
    command: str,
    description: str,
    default_config: str | Path,
    flags: Mapping[str, str],
    options: Mapping[str, str],
) -> str:
    """What `--help` prints: usage, flags, and every setting with type, default and help."""
    names = "".join(f" [--{name}]" for name in flags)
    names += "".join(f" [--{name} VALUE]" for name in options)
    lines = [
        f"usage: python -m fst_jax.{command} [--config FILE] [--section.field VALUE ...]{names}",
        "",
        description.strip(),
        "",
        f"  --config FILE\n      YAML file of settings (default: {default_config}).",
        "      A path configs/… that does not exist here means the copy in the package.",
        *(f"  --{name}\n      {text}" for name, text in flags.items()),
        *(f"  --{name} VALUE\n      {text}" for name, text in options.items()),
        "",
        "Settings, for the file and the command line:",
    ]
    section = None
    for key, setting in schema.settings().items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += ["", section or "(top level)"]
        default = json.dumps(setting.default, ensure_ascii=False)
        lines.append(f"  --{key}  {setting.expected}; default {default}")
        lines.append(
            textwrap.fill(setting.help, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
        )
    return "\n".join(lines)


def _argument_value(setting: schema.Setting, text: str) -> Any:
    if setting.is_text:
        return None if setting.is_optional and text == "null" else text
    node = plain_yaml.compose(text) if text else None
    return text if node is None else plain_yaml.value(node)


def _merged(base: Any, over: Any) -> Any:
    """`over` on top of `base`: mappings entry by entry, anything else replaced."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
