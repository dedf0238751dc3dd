"""What a completion says: what it says first, the format of its answer, and the answer."""

import re
from dataclasses import dataclass

_ENDINGS = {
    "square": re.compile(r"(.*?)\[ ([^\[\](){}:]*) \]"),
    "round": re.compile(r"(.*?)\( ([^\[\](){}:]*) \)"),
    "curly": re.compile(r"(.*?)\{ ([^\[\](){}:]*) \}"),
    "plain": re.compile(r"(.*?)answer : ([^\[\](){}:]*)"),
}


@dataclass(frozen=True)
class Answer:
    """A completion in parts; without a readable answer `format` is None."""

    steps: str
    format: str | None
    content: str


def read(text: str) -> Answer:
    """Take a completion apart; tokens are separated by single spaces."""
    text = " ".join(text.split())
    for format, pattern in _ENDINGS.items():
        found = pattern.fullmatch(text)
        if found:
            return Answer(found[1].strip(), format, found[2])
    return Answer(text, None, "")
