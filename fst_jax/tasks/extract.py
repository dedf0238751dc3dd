r"""Find the answer in the text of a completion.

Every task reads answers through these functions, so that `\boxed{}`, answer
tags and thinking blocks mean the same everywhere.  The last answer counts: a
model may correct itself.  Each takes time linear in the text, whatever it holds.
"""

import re

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are characters, not grouping


def after_thinking(text: str) -> str:
    """The text after the last `</think>`; empty if the thinking never ended."""
    _, closed, rest = text.rpartition("</think>")
    if closed:
        return rest.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`; braces inside may be nested."""
    boxes = {match.end() - 1 for match in _BOXED.finditer(text)}
    opened: list[int] = []
    found: tuple[int, int] | None = None
    for brace in _BRACES.finditer(text) if boxes else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            start = opened.pop()
            if start in boxes and (found is None or start > found[0]):
                found = start, brace.start()
    return None if found is None else text[found[0] + 1 : found[1]].strip()


def last_tagged(text: str) -> str | None:
    """The content of the last `<answer>…</answer>`."""
    content, start = None, None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            content, start = text[start : tag.start()].strip(), None
    return content


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
