r"""Find the answer in the text of a completion.

Every task reads answers through these functions, so that `\boxed{}`, answer
tags and thinking blocks mean the same everywhere.  The last answer counts: a
model may correct itself.
"""

import re

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_BOXED = re.compile(r"\\boxed\s*\{")


def after_thinking(text: str) -> str:
    """The text after the last `</think>`; empty if the thinking never ended."""
    _, closed, rest = text.rpartition("</think>")
    if closed:
        return rest.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`; braces inside may be nested."""
    for opening in reversed(list(_BOXED.finditer(text))):
        content = _to_closing_brace(text, opening.end())
        if content is not None:
            return content.strip()
    return None


def last_tagged(text: str) -> str | None:
    """The content of the last `<answer>…</answer>`."""
    found = _TAGGED.findall(text)
    return found[-1].strip() if found else None


def last_fenced(text: str) -> str | None:
    """The content of the last block fenced by three backticks."""
    found = _FENCED.findall(text)
    return found[-1].strip() if found else None


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return text.strip().rpartition("\n")[2].strip()


def final_answer(text: str, multiline: bool = False) -> str:
    r"""The answer, wherever the model put it.

    The first of these that is there: `<answer>…</answer>`, `\boxed{…}`, a fenced
    block, the last line.  With `multiline` the whole text stands for the last line.
    """
    text = after_thinking(text)
    for read in (last_tagged, last_boxed, last_fenced):
        answer = read(text)
        if answer is not None:
            return answer
    return text if multiline else last_line(text)


def shorten(text: str, limit: int = 200) -> str:
    """`text` in one line of at most `limit` characters, for feedback."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _to_closing_brace(text: str, start: int) -> str | None:
    depth, position = 1, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # \{ and \} are characters, not grouping
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position]
        position += 1
    return None
