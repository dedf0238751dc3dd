"""How a language model's answer is read: the prompt is its last fenced block.

Models wrap answers in more ways than they are asked for.  What is told here for
sure is read: thinking, whose opening tag may stand in the chat template and
whose closing tag may be forgotten; prose around the block; blocks before it; a
code block within it; a last fence that was never closed by a model that ended
by itself.  An answer that was cut off is refused rather than guessed at: half a
prompt may be good enough to be adopted.  So is one that holds fences within, but
not a longer one around them, as it was asked for.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_TAG = re.compile("<think>|</think>")
_FENCE = re.compile(r"\s*(`{3,})([^`]*)$")
_TICKS = re.compile("`{3,}")


def edited_prompt(
    answer: str, finish_reason: str | None = "stop", fence: str = "```"
) -> tuple[str, str | None]:
    """The prompt in a model's answer, or "" and the reason why there is none.

    The reasons: `truncated`, `empty answer`, `only thinking`, `no fenced prompt`, `unclear fences`.
    `finish_reason` is OpenAI's; with anything but "stop" an open fence is a cut.  `fence` is the
    one that was asked for, longer than three where prompts hold fences themselves.
    """
    if finish_reason == "length":
        return "", "truncated"
    if not answer.strip():
        return "", "empty answer"
    first = _TAG.search(answer)
    if first and first[0] == "</think>":  # its opening tag was in the prompt
        answer = answer[first.end() :]
    ended, seen = finish_reason == "stop", _read(answer.splitlines(), len(fence))
    if len(fence) > 3 and seen.block is None and not seen.open:  # plain fences: are they around it?
        seen = _read(answer.splitlines(), 3)
        if (seen.block is not None or seen.open) and len(_TICKS.findall(answer)) > 2:
            return "", "unclear fences"
    if seen.open and not ended:
        return "", "truncated"
    if seen.beside and seen.fences and not seen.open:  # that block ended too early
        return "", "unclear fences"
    if seen.open:
        return seen.open, None
    if seen.block is not None:
        return seen.block, None
    if seen.thought is not None:
        # Its end may be the answer, for want of a closing tag.
        thought = _read(seen.thought, len(fence))
        if ended and thought.block and not (thought.open or thought.goes_on):
            return thought.block, None
        return "", "only thinking" if ended else "truncated"
    return "", "no fenced prompt" if seen.says_something else "only thinking"


@dataclass
class _Seen:
    """What lines of an answer hold."""

    block: str | None = None  # the last that is closed
    beside: bool = False  # whether the fence that closes it stands beside text
    open: str = ""  # one that is not, up to the end
    goes_on: bool = False  # whether there is text after the last block
    says_something: bool = False  # outside of thoughts
    thought: list[str] | None = None  # one that is not closed, up to the end
    fences: list[str] = field(default_factory=list)  # open here, the innermost last


def _read(lines: Iterable[str], least: int) -> _Seen:
    """What stands between fences of at least so many backticks; shorter ones are text."""
    seen, block = _Seen(), list[str]()
    for line in lines:
        if seen.fences:
            _within(seen, block, line)
            continue
        line = _unthought(seen, line)
        opening = _FENCE.match(line)
        if opening and len(opening[1]) >= least:
            # One word names a language; more are the prompt's first line.
            first = opening[2].strip()
            seen.fences, block = [opening[1]], [first] if " " in first else []
        elif line.strip():
            seen.goes_on = True
        seen.says_something |= bool(line.strip())
    if seen.fences:
        seen.open = "\n".join(block).strip()
    return seen


def _within(seen: _Seen, block: list[str], line: str) -> None:
    """A line of a block: it may open a block within it, or close the innermost."""
    opening = _FENCE.match(line)
    if opening and opening[2].strip() and len(opening[1]) >= len(seen.fences[-1]):
        seen.fences.append(opening[1])
        block.append(line)
        return
    text = line.rstrip()
    last = text.rstrip("`")
    closes = text.endswith(seen.fences[-1]) and "```" not in last
    if closes:
        seen.fences.pop()
    if not closes or seen.fences:
        block.append(line)
        return
    seen.beside = bool(last.strip())
    if seen.beside:
        block.append(last)
    seen.block, seen.goes_on = "\n".join(block).strip(), False


def _unthought(seen: _Seen, line: str) -> str:
    """What a line outside of blocks says; its thoughts go to `seen`."""
    said = ""
    for part in re.split("(<think>|</think>)", line):
        if part == "<think>" and seen.thought is None:
            seen.thought = []
        elif part == "</think>":
            if seen.thought is None:  # all before it was a thought
                seen.block, said = None, ""
            seen.thought = None
        elif seen.thought is None:
            said += part
        else:
            seen.thought.append(part)
    return said
