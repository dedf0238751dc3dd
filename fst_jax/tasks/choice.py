"""Multiple choice: one letter in <answer> tags.

Rows have a question, choices and the key of the right one, as in SciKnowEval (Feng et al. 2024,
arXiv 2406.09098), whose physics questions the paper trains on: `choices` is
`{"text": [...], "label": ["A", ...]}` and `answerKey` a label.  A plain list of choices with a
number or letter for the right one (MMLU, ARC) is read too.  Rows of another kind, such as
SciKnowEval's open questions, are left out.
"""

import re
from collections.abc import Sequence
from typing import Any

from fst_jax.errors import TaskError
from fst_jax.tasks.advice import judged
from fst_jax.tasks.extract import after_thinking, last_tagged, shorten
from fst_jax.tasks.held_out import split_rows
from fst_jax.tasks.rows import Row, column
from fst_jax.tasks.task import Message, Problem, Score, Split

ADVICE = {
    "correct": ("Keep ending with the letter alone inside <answer> and </answer>.",),
    "no answer": (
        "End with the letter of the right choice inside <answer> and </answer>.",
        "Always finish with <answer>, one letter, and </answer>.",
        "Keep the reasoning short enough to reach an answer.",
    ),
    "not a choice": (
        "Inside <answer> and </answer> write one letter of the choices and nothing else.",
        "Choose exactly one of the listed letters.",
    ),
    "wrong choice": (
        "Work out the answer before looking at the choices, then pick the one that agrees.",
        "Rule out the wrong choices one by one and say why.",
        "Write down the law or definition that the question is about, then apply it.",
        "Check units and orders of magnitude before choosing.",
    ),
}
_KEYS = ("answerKey", "answer", "label")
_LETTER = re.compile(r"\(?([A-Za-z0-9])\)?[.:)]?(?=\s|$)")


class Choice:
    """Multiple-choice questions from files; see the module's first paragraph."""

    name = "choice"
    seed_prompt = "Choose the right answer. Put its letter inside <answer> and </answer>."

    def __init__(
        self,
        train: str,
        test: str | None = None,
        test_size: int = 200,
        seed: int = 0,
        domain: str | None = None,
    ):
        """Without `test`, `test_size` problems are held out of `train`, by `seed`.

        `domain` takes the rows whose column of that name says so, in any case: physics.
        """
        self._domain = domain
        self._splits = split_rows(self.name, self._parse, train, test, test_size, seed)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split."""
        return self._splits[split]

    def render(self, problem: Problem) -> list[Message]:
        """The question, and each choice on a line after its letter."""
        listed = "\n".join(f"{label}. {text}" for label, text in problem.data["choices"].items())
        return [{"role": "user", "content": f"{problem.question}\n\n{listed}"}]

    def score(self, problem: Problem, text: str) -> Score:
        """1 for the letter, or the exact words, of the right choice in the last answer tags."""
        choices: dict[str, str] = problem.data["choices"]
        given = last_tagged(after_thinking(text))
        if not given:
            detail = "There is no <answer> with a letter in it."
            return judged(problem, 0.0, "no answer", ADVICE, detail)
        label = _chosen(given, choices)
        if label == problem.answer:
            return judged(problem, 1.0, "correct", ADVICE, "The choice is right.")
        category = "not a choice" if label is None else "wrong choice"
        right = f"{problem.answer}. {choices[problem.answer]}"
        detail = f"Expected: {shorten(right)}\nGot: {shorten(given)}"
        return judged(problem, 0.0, category, ADVICE, detail)

    def _parse(self, id: str, row: Row, where: str) -> Problem | None:
        domain = str(row.get("domain", "")).casefold()
        if self._domain is not None and domain != self._domain.casefold():
            return None
        choices = _choices(row.get("choices"))
        key = next((row[name] for name in _KEYS if row.get(name) not in (None, "")), None)
        if not choices or key is None:
            return None
        labels = list(choices)
        if isinstance(key, int) and 0 <= key < len(labels):
            key = labels[key]
        if not isinstance(key, str) or key not in choices:
            raise TaskError(f"{where}: the answer {key!r:.80} is none of {', '.join(labels)}")
        question = column(row, "question", where)
        if not isinstance(question, str) or not question.strip():
            raise TaskError(f"{where}: 'question' must be a text that is not empty")
        return Problem(id, question.strip(), key, {"choices": choices})


def _choices(given: Any) -> dict[str, str]:
    """Label → text, in order; empty if the row offers none."""
    if isinstance(given, dict):
        labels, texts = given.get("label") or (), given.get("text") or ()
    else:
        texts = given if isinstance(given, list) else ()
        labels = tuple(map(chr, range(ord("A"), ord("A") + len(texts))))
    if not all(isinstance(each, list | tuple) for each in (labels, texts)):
        return {}
    if len(labels) != len(texts):
        return {}
    return {str(label): str(text) for label, text in zip(labels, texts, strict=True)}


def _chosen(given: str, choices: dict[str, str]) -> str | None:
    """The label that an answer names, or None."""
    for label, text in choices.items():
        if given.casefold() == text.strip().casefold():
            return label
    letter = _LETTER.match(given)
    if letter is None:
        return None
    found = [label for label in choices if label.casefold() == letter[1].casefold()]
    if not found:
        return None
    rest = given[letter.end() :].strip()
    # "B. the text of B" is B; "A or B" is nothing.
    return found[0] if not rest or rest == choices[found[0]].strip() else None
