"""What the answers of a data set look like, guessed from a sample of them.

The kind tells a wrong answer from one in the wrong format, and supplies the
advice about the format, which is what a prompt can teach soonest.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fst_jax.tasks.scorers import NOT_JSON, parse_json

SAMPLE = 50  # answers needed to call a small set of values complete
_MAX_CHOICES = 6
_WHOLE = re.compile(r"[-+]?\d+")
_DECIMAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class AnswerKind:
    """The form of an answer.

    `name` is choice, whole number, number, JSON, several lines or text; `choices`
    are the values of a choice, `longest` the length of the longest answer seen.
    """

    name: str
    advice: tuple[str, ...]
    choices: tuple[str, ...] = ()
    longest: int = 0

    def fits(self, answer: str) -> bool:
        """Whether `answer` has the form, right or wrong."""
        if self.name == "choice":
            return answer.casefold() in {choice.casefold() for choice in self.choices}
        if self.name == "whole number":
            return _WHOLE.fullmatch(answer) is not None
        if self.name == "number":
            return _DECIMAL.fullmatch(answer) is not None
        if self.name == "JSON":
            return parse_json(answer) is not NOT_JSON
        return self.longest == 0 or len(answer) <= 3 * self.longest + 20

    def last_in(self, sentence: str) -> str:
        """The last choice or number that a sentence names; the sentence, if there is none."""
        if self.name == "choice":
            longest_first = sorted(self.choices, key=len, reverse=True)
            options = "|".join(re.escape(choice) for choice in longest_first)
            found = re.findall(rf"(?<!\w)(?:{options})(?!\w)", sentence, re.IGNORECASE)
        elif self.name in ("whole number", "number"):
            form = _WHOLE if self.name == "whole number" else _DECIMAL
            found = [match[0] for match in form.finditer(sentence)]
        else:
            return sentence
        return found[-1] if found else sentence


def kind_of(answers: Sequence[str]) -> AnswerKind:
    """The narrowest kind that all `answers` have; empty ones are unknown and left out."""
    known = [answer.strip() for answer in answers if answer.strip()]
    choices = tuple(sorted(set(known)))
    if (
        len(known) >= SAMPLE
        and 1 < len(choices) <= _MAX_CHOICES
        and len(max(choices, key=len)) < 30
    ):
        listed = ", ".join(choices)
        return AnswerKind(
            "choice",
            (
                f"Answer with exactly one of these and nothing else: {listed}.",
                f"The final answer must be one of: {listed}.",
                f"Give the answer directly, without explanation: one of {listed}.",
            ),
            choices=choices,
        )
    if known and all(_WHOLE.fullmatch(answer) for answer in known):
        return AnswerKind(
            "whole number",
            (
                "Answer with a single whole number in digits.",
                "Write only the number, without words, units or an equation.",
                "Give the number directly, without explanation.",
            ),
        )
    if known and all(_DECIMAL.fullmatch(answer) for answer in known):
        return AnswerKind(
            "number",
            (
                "Answer with a single number in digits.",
                "Write only the number, with its decimals and without words or units.",
                "Give the number directly, without explanation.",
            ),
        )
    values = [parse_json(answer) for answer in known]
    if NOT_JSON not in values and any(isinstance(value, list | dict) for value in values):
        return AnswerKind(
            "JSON",
            (
                "Answer with one valid JSON value and nothing else.",
                "Write the answer as JSON, with double quotes and every bracket closed.",
                "Put the JSON value alone inside <answer> and </answer>.",
            ),
        )
    longest = max((len(answer) for answer in known), default=0)
    if any("\n" in answer for answer in known):
        return AnswerKind(
            "several lines",
            (
                "Answer with the lines of the result only, in the layout of the question.",
                "Put the lines of the result inside <answer> and </answer>, without comment.",
            ),
            longest=longest,
        )
    return AnswerKind(
        "text",
        (
            "Give only the final answer, without explanation.",
            "Put the final answer alone inside <answer> and </answer>.",
            "Write the answer in the form that the question asks for, and nothing else.",
        ),
        longest=longest,
    )
