"""Code output: what does this Python function return for this input?

The programs and their inputs are the CodeI/O data (Li et al. 2025, arXiv 2502.07316) that the
package reasoning-gym ships; it runs them in a worker process to learn the right answer, as
`fst_jax/tasks/reasoning_gym.py` tells.  The reward here is the paper's kind, all or nothing: 1 when
the answer is the same JSON value as the output, however it is spaced and ordered, where the library
pays for similarity.  Feedback names the first thing wrong: no answer, no JSON, another type, other
keys, another value, and where in the value it stands.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fst_jax.tasks.advice import judged
from fst_jax.tasks.extract import final_answer, shorten
from fst_jax.tasks.reasoning_gym import ReasoningGym
from fst_jax.tasks.scorers import kind_of_json, parse_json, read_json, same_json
from fst_jax.tasks.task import Message, Problem, Score, Split

ADVICE = {
    "correct": ("Keep giving the output as one JSON value.",),
    "no answer": (
        "Always end with the output inside <answer> and </answer>.",
        "Keep the trace short enough to reach the output.",
    ),
    "not JSON": (
        "Write the output as valid JSON: double quotes, true, false and null, no comments.",
        "Write JSON, not Python: lists instead of tuples, true instead of True.",
        "Put one complete JSON value, and nothing else, inside <answer> and </answer>.",
    ),
    "wrong type": (
        "Check the type of the output: a number is not a string, and a list is not an object.",
        "Give the value with the type that the code returns.",
    ),
    "wrong keys": (
        "Use exactly the keys of the dictionary that the code returns.",
        "Return all that the code returns: no key left out, none added.",
    ),
    "wrong length": (
        "Count how often each loop runs: the list must be as long as the code makes it.",
        "Give every element of the list that the code returns, and no other.",
    ),
    "wrong value": (
        "Trace the code line by line and write down each variable after every step.",
        "Follow the branches that the given input takes, and do every calculation exactly.",
        "Check rounding, integer division and the bounds of ranges before answering.",
    ),
}
# What Python writes and JSON does not: its constants, single quotes around a string, tuples.
_PYTHON = re.compile(r"\b(?:True|False|None)\b|[\[{(,:]\s*'|^\s*(?:'|\()")


class CodeIO:
    """Predict the output of code as JSON; see the module's first paragraph."""

    name = "code_io"
    seed_prompt = "Predict what the code returns. Put the JSON inside <answer> and </answer>."

    def __init__(
        self,
        train_size: int = 10_000,
        test_size: int = 200,
        seed: int = 0,
        difficulty: int | None = None,
        *,
        timeout_s: float = 10.0,
    ):
        """`difficulty`, 1 to 10, takes the library's programs of that difficulty alone."""
        parameters = {} if difficulty is None else {"difficulty": difficulty}
        self._library = ReasoningGym(
            "codeio", train_size, test_size, seed, parameters, timeout_s=timeout_s
        )

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, each made on demand."""
        return self._library.problems(split)

    def render(self, problem: Problem) -> list[Message]:
        """The library's question as one user message."""
        return self._library.render(problem)

    def score(self, problem: Problem, text: str) -> Score:
        """1 for the same JSON value as the output, else 0 and the first thing wrong."""
        category, detail = _judge(problem.answer, text)
        return judged(problem, float(category == "correct"), category, ADVICE, detail)


def _judge(gold: str, text: str) -> tuple[str, str]:
    """(category, what this answer got wrong)."""
    answer = read_json(text)
    if answer is None:
        given = final_answer(text, multiline=True)
        if not given:
            thought = " after the thinking" if "<think>" in text else ""
            return "no answer", f"Nothing was answered{thought}."
        return "not JSON", f"{_not_json(given)}\nGot: {shorten(given)}"
    differences = _differences(parse_json(answer), parse_json(gold), "the output")
    try:
        first = None if answer == gold else next(differences, None)
    except RecursionError:
        first = "wrong value", "The answer is nested too deeply to be compared."
    if first is None:
        return "correct", "The output is right."
    category, difference = first
    return category, f"{difference}\nExpected: {shorten(gold)}\nGot: {shorten(answer)}"


def _differences(value: Any, expected: Any, where: str) -> Iterator[tuple[str, str]]:
    """(category, sentence) for each difference of two JSON values, outermost first."""
    given, wanted = kind_of_json(value), kind_of_json(expected)
    if given != wanted:
        yield "wrong type", f"In {where}: expected the JSON type {wanted}, got {given}."
    elif isinstance(expected, dict):
        missing = ", ".join(sorted(expected.keys() - value.keys()))
        added = ", ".join(sorted(value.keys() - expected.keys()))
        if missing or added:
            told = [f"lacks {missing}"] * bool(missing) + [f"should not have {added}"] * bool(added)
            yield "wrong keys", f"{where[0].upper()}{where[1:]} {shorten(' and '.join(told))}."
        for key in expected:
            if key in value:
                yield from _differences(value[key], expected[key], f"{where}, key {key!r}")
    elif isinstance(expected, list):
        if len(value) != len(expected):
            lengths = f"{len(value)} elements instead of {len(expected)}"
            yield "wrong length", f"{where[0].upper()}{where[1:]} has {lengths}."
        for i, (a, b) in enumerate(zip(value, expected, strict=False)):
            yield from _differences(a, b, f"{where}, element {i}")
    elif not same_json(value, expected):
        got, want = (shorten(json.dumps(x, ensure_ascii=False), 80) for x in (value, expected))
        yield "wrong value", f"In {where}: {got} instead of {want}."


def _not_json(text: str) -> str:
    """Why `text` is no JSON."""
    if _PYTHON.search(text):
        return "This is Python's notation, not JSON's."
    try:
        json.loads(text)
    except RecursionError:
        return "The JSON is nested too deeply."
    except ValueError as error:
        return f"The answer is not valid JSON: {error}."
    return "The answer is not valid JSON."
