"""Keys of servers and other secrets: they come from the environment and go into requests alone.

A config is written into the run's folder, shown by --dry-run and sent to W&B, so that it may name
the environment variable of a key and never hold the key.  What looks like one is refused before
anything is written; messages about settings and from servers are masked.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fst_jax.errors import ConfigError

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_USER_OF_URL = re.compile(r"(?<=://)[^/?#\s'\"]*@")
_QUERY_NAME = re.compile(r"[?&]([^=&#\s]+)=")
# Names of entries whose texts are secrets; those that end in _env name a variable.
_SECRET_NAME = re.compile(
    r"passw(or)?d|credential|authorization|bearer|^(client[-_ ]?)?secret$|^(hf[-_ ]?)?token$"
    r"|(api|access|private|secret|auth)[-_ ]?(key|token)",
    re.IGNORECASE,
)
# How the keys of well-known services begin.
_SECRET_TEXT = re.compile(r"(bearer\s+\S+|(sk|pk|hf|gh[a-z]|glpat|xox[a-z])[-_][\w-]{16,})", re.I)


def key_in(variable: str) -> str | None:
    """The key in an environment variable, or None where there is none.

    Raises:
      ConfigError: it holds what no header can, such as a line end.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the key in the environment variable {variable} holds characters that cannot be "
            "sent: copy it again"
        )
    return key or None


def masked(text: str, key: str | None = None) -> str:
    """`text` without `key`, and without user names and passwords in addresses."""
    if key:
        text = text.replace(key, "[key]")
    return _USER_OF_URL.sub("…@", text)


def secrets_found(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, message) for every setting that holds a secret, as it seems; without its value.

    `settings` are those of a config, by section.
    """
    for section, values in settings.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            key = f"{section}.{name}"
            if name.endswith("_env"):
                if not _VARIABLE.fullmatch(value):
                    yield (
                        key,
                        (
                            "must be the name of an environment variable, in capitals such as "
                            "OPENAI_API_KEY, not the key itself: settings are written to disk"
                        ),
                    )
                continue
            where = next((inner for inner, found in _texts(value, name) if _secret(*found)), None)
            if where is not None:
                entry = f" (in {where})" if where != name else ""
                yield (
                    key,
                    (
                        f"seems to hold a password or key{entry}, and settings are written to "
                        f"disk: put it into an environment variable, {_remedy(section)}"
                    ),
                )


def _remedy(section: str) -> str:
    variable = {"rollout": "rollout.api_key_env", "fast": "fast.lm_api_key_env"}.get(section)
    return f"which {variable} names" if variable else "and read it from there"


def _secret(name: str, text: str) -> bool:
    """Whether the text of an entry of this name is a secret."""
    named = _SECRET_NAME.search(name) and not name.lower().endswith(("_env", "_variable"))
    queried = "://" in text[:16] and any(
        _SECRET_NAME.search(query) for query in _QUERY_NAME.findall(text)
    )
    in_url = re.match(r"\s*[a-z][a-z0-9+.-]*://", text, re.I) and _USER_OF_URL.search(text)
    return bool(text and (named or queried or in_url or _SECRET_TEXT.fullmatch(text.strip())))


def _texts(value: Any, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(place, (name of the innermost entry, text)) of every text in a value."""
    pending = [(name, name, value)]
    while pending:
        place, last, inner = pending.pop()
        if isinstance(inner, str):
            yield place, (last, inner)
        elif isinstance(inner, dict):
            pending += [(f"{place}.{k}", str(k), v) for k, v in inner.items()]
        elif isinstance(inner, list):
            pending += [(place, last, each) for each in inner]
