"""The YAML that settings are written in: YAML 1.2's plain values, nothing else.

PyYAML follows YAML 1.1, which reads `1e-5` as text, `no` as false and `010` as
eight.  Here scalars follow the core schema of YAML 1.2: null, true and false,
decimal, 0o and 0x integers, floats with or without a point, and text.  The
dumper quotes by the same rules, so that every value comes back as it was.
"""

import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


class Loader(yaml.SafeLoader):
    """Composes nodes, whose marks carry line numbers, and builds plain values from them."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    yaml_constructors = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (f"{_TAG}null", f"{_TAG}bool", f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map", None)
    }

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        number = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if abs(number) >= 2**64:
            raise ValueError("a whole number of more than 64 bits")
        return number

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return float(
            self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan")
        )


class Dumper(yaml.SafeDumper):
    """Writes plain values; text of several lines becomes a block."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # Unicode's own line breaks survive only when escaped.
        escape = any(character in text for character in "\x85\u2028\u2029")
        style = '"' if escape else "|" if "\n" in text else None
        return self.represent_scalar(f"{_TAG}str", text, style)


for _name, (_pattern, _first) in _SCALARS.items():
    for _kind in (Loader, Dumper):
        # \Z, since $ would also match before a final newline.
        _kind.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
Loader.add_constructor(f"{_TAG}int", Loader.construct_int)
Loader.add_constructor(f"{_TAG}float", Loader.construct_float)
Dumper.add_representer(str, Dumper.represent_text)


class BadYaml(Exception):
    """A text is not YAML, or holds what is not a plain value."""

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


def compose(text: str) -> yaml.Node | None:
    """The node tree of one document; None when it is empty.

    Raises:
      BadYaml: with the line where reading stopped.
    """
    try:
        return yaml.compose(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise BadYaml(said, mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:
        raise BadYaml(str(error).splitlines()[0]) from error
    except RecursionError as error:
        raise BadYaml("nested too deeply") from error


def value(node: yaml.Node) -> Any:
    """The plain value of a node: None, bool, int, float, str, list or dict.

    Raises:
      BadYaml: a tag, a key or a number that has no plain value.
    """
    try:
        return Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or node.start_mark
        raise BadYaml(error.problem or str(error), mark.line + 1) from error
    except (ValueError, KeyError, RecursionError) as error:
        raise BadYaml(f"cannot be read: {error}", node.start_mark.line + 1) from error


def dump(data: Any) -> str:
    """YAML of nested plain values, in their order."""
    return yaml.dump(
        data,
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=100,
    )
