r"""Ways to compare an answer with the expected one, for tasks that come as data.

A scorer reads an answer out of a completion and says whether it agrees with the
gold answer.  All are pure and never raise; the reward is 1 or 0.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from fst_jax.errors import TaskError
from fst_jax.tasks.advice import judged
from fst_jax.tasks.extract import after_thinking, final_answer, last_boxed, last_fenced, shorten
from fst_jax.tasks.task import Problem, Score

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")
NOT_JSON = object()  # what parse_json returns for text that is none


def parse_number(text: str) -> Decimal | None:
    """`text` as a number; $, % and the commas of thousands are ignored."""
    text = text.strip().strip("$%").strip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) < 1000 else None


def parse_json(text: str) -> Any:
    """The JSON value of `text`, or `NOT_JSON`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NOT_JSON


def same_json(left: Any, right: Any) -> bool:
    """Equal as JSON values: the order of keys is ignored, 1.0 is 1, true is not."""
    try:
        return _same_value(left, right)
    except RecursionError:
        return False


def _same_value(left: Any, right: Any) -> bool:
    if kind_of_json(left) != kind_of_json(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same_value(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same_value, left, right))
    return left == right or (left != left and right != right)  # NaN is NaN


def kind_of_json(value: Any) -> str:
    """What JSON calls the type of a value."""
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "boolean"),  # before int, which it is to Python
        (int, "number"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
        (dict, "object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def read_exact(text: str) -> str | None:
    """The whole answer."""
    return after_thinking(text) or None


def read_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}`."""
    return last_boxed(after_thinking(text)) or None


def read_number(text: str) -> str | None:
    """The last number of the final answer, or else of the whole text."""
    for where in (final_answer(text), after_thinking(text)):
        found = _NUMBER.findall(where)
        if found:
            return found[-1].rstrip(".,")
    return None


def read_json(text: str) -> str | None:
    """The JSON of the final answer: all of it, a fenced block, or the outermost brackets."""
    text = after_thinking(text)
    for candidate in (final_answer(text, multiline=True), text, last_fenced(text)):
        if candidate and parse_json(candidate) is not NOT_JSON:
            return candidate
    for opening, closing in ("{}", "[]"):
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end and parse_json(text[start : end + 1]) is not NOT_JSON:
            return text[start : end + 1]
    return None


def same_text(answer: str, gold: str) -> bool:
    """Equal but for white space."""
    return answer.split() == gold.split()


def same_number(answer: str, gold: str) -> bool:
    """Equal numbers: exactly when gold is whole, else to six significant digits.

    Gold that is no number is compared as text.
    """
    left, right = parse_number(answer), parse_number(gold)
    if left is None or right is None:
        return same_text(answer, gold)
    if right == right.to_integral_value():
        return left == right
    return abs(left - right) <= abs(right) * Decimal("1e-6")


def same_json_text(answer: str, gold: str) -> bool:
    """Equal as JSON values; gold that is no JSON is compared as text."""
    value, expected = parse_json(answer), parse_json(gold)
    if value is NOT_JSON or expected is NOT_JSON:
        return same_text(answer, gold)
    return same_json(value, expected)


def contains_text(answer: str, gold: str) -> bool:
    """Gold occurs in the answer as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(gold.strip())}(?!\w)", answer, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Scorer:
    """How an answer is read, when it agrees with gold, and what to advise when not."""

    read: Callable[[str], str | None]
    agree: Callable[[str, str], bool]
    advice: Mapping[str, Sequence[str]]

    def score(self, problem: Problem, text: str) -> Score:
        """Reward 1 or 0; categories "correct", "no answer" and "wrong answer"."""
        answer = self.read(text)
        if answer is None:
            detail = f"No answer could be read from: {shorten(text) or '(nothing)'}"
            return judged(problem, 0.0, "no answer", self.advice, detail)
        if self.agree(answer, problem.answer):
            return judged(problem, 1.0, "correct", self.advice, "The answer is right.")
        detail = f"Expected: {shorten(problem.answer)}\nGot: {shorten(answer)}"
        return judged(problem, 0.0, "wrong answer", self.advice, detail)


_THINK = (
    "Work through the problem step by step and check the result before answering.",
    "Read the question again and make sure that the answer meets every condition.",
)


def _advice(form: Sequence[str], wrong: Sequence[str] = _THINK) -> dict[str, Sequence[str]]:
    return {
        "correct": ("Keep giving the answer in the same form.",),
        "no answer": form,
        "wrong answer": wrong,
    }


_ANSWER_ONLY = (
    "Answer with the final answer alone, without explanation.",
    "Do not repeat the question; write nothing but the answer.",
)

SCORERS: dict[str, Scorer] = {
    "exact": Scorer(read_exact, same_text, _advice(_ANSWER_ONLY, (*_ANSWER_ONLY, *_THINK))),
    "boxed": Scorer(
        read_boxed,
        same_number,
        _advice(
            (
                r"Put the final answer inside \boxed{}.",
                r"End with the final answer in \boxed{} and nothing after it.",
            )
        ),
    ),
    "number": Scorer(
        read_number,
        same_number,
        _advice(
            (
                "End with the final answer as a number in digits.",
                "Write the answer as a single number.",
            )
        ),
    ),
    "json": Scorer(
        read_json,
        same_json_text,
        _advice(
            (
                "Answer with one valid JSON value.",
                "Write the answer as JSON: double quotes, no comments, nothing left out.",
            )
        ),
    ),
    "contains": Scorer(
        read_exact,
        contains_text,
        _advice(("Always give an answer.",), ("State the final answer in full.", *_THINK)),
    ),
}


def scorer_named(name: str, task: str) -> Scorer:
    """The scorer of that name.

    Raises:
      TaskError: there is none; the message begins with `task`.
    """
    if name in SCORERS:
        return SCORERS[name]
    near = difflib.get_close_matches(name, SCORERS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise TaskError(f"{task}: unknown scorer {name!r}: {hint}choose one of {', '.join(SCORERS)}")
