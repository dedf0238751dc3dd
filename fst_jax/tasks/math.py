r"""Mathematics with a final answer in `\boxed{}`, judged by math-verify.

Problems come from any source of `fst_jax/tasks/rows.py`: GSM8K, MATH, Polaris and their like, as
files of the Hugging Face hub, JSONL or TensorFlow Datasets.  Gold may be an answer, a solution that
ends in `\boxed{…}` (MATH), or one that ends in `#### 72` (GSM8K).

The reward is 1 when math-verify (Kydlíček, Hugging Face) holds the content of the last `\boxed{…}`
and gold for the same value, else 0: fractions and decimals, sets, intervals, matrices and
equations are compared by what they mean.  Its parser and SymPy may take for ever, or all memory,
on what a model writes, so both run in worker processes with a wall deadline and a limit on memory,
and answers that no textbook would give, of more than 1,000 characters, are not looked at.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache

from fst_jax.errors import TaskError
from fst_jax.tasks.advice import judged
from fst_jax.tasks.extract import after_thinking, last_boxed, shorten
from fst_jax.tasks.held_out import split_rows
from fst_jax.tasks.rows import Row, as_text, column
from fst_jax.tasks.task import Message, Problem, Score, Split
from fst_jax.tasks.worker import CallCrashed, CallRaised, CallTimeout, Workers

MAX_ANSWER = 1000  # characters
_MEMORY = 4 << 30  # bytes of address space that a worker may have
_QUESTIONS = ("problem", "question", "prompt")
_ANSWERS = ("answer", "final_answer", "short_answer", "expected_answer", "solution")

_SIMPLER = (
    "Write the final answer in its simplest form, as a textbook would print it.",
    r"Carry the calculation out: put a number or a short formula inside \boxed{}.",
)
ADVICE = {
    "correct": (r"Keep ending with the final answer inside \boxed{}.",),
    "no boxed answer": (
        r"End with the final answer inside \boxed{}.",
        r"Put the final answer, and nothing else, inside \boxed{}.",
        "Keep the reasoning short enough to reach a final answer.",
    ),
    "wrong answer": (
        "Solve the problem step by step and check every step.",
        "Check the result by putting it back into the problem.",
        "Read the question again before answering: give exactly what it asks for.",
        "Look for a second way to the result and compare both.",
    ),
    "unreadable answer": (
        r"Inside \boxed{} write only the value, without words or units.",
        r"Inside \boxed{} write a number or a formula in LaTeX.",
    ),
    "timeout": _SIMPLER,
    "scorer crashed": _SIMPLER,
}


class Math:
    """Questions with a final answer, from files; see the module's first paragraph."""

    name = "math"
    seed_prompt = r"Solve the problem. Put the final answer inside \boxed{}."

    def __init__(
        self,
        train: str,
        test: str | None = None,
        test_size: int = 200,
        seed: int = 0,
        question_field: str | None = None,
        answer_field: str | None = None,
        *,
        timeout_s: float = 10.0,
    ):
        """Without `test`, `test_size` problems are held out of `train`, by `seed`.

        Fields that are not named are looked for: the question in problem, question or prompt; gold
        in answer, final_answer, short_answer, expected_answer or solution.
        """
        self._question, self._answer = question_field, answer_field
        self._timeout_s = timeout_s
        self._splits = split_rows(self.name, self._parse, train, test, test_size, seed)
        self._workers = Workers("fst_jax.tasks.math:Grader")
        self._judge = lru_cache(maxsize=4096)(self._judge_anew)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split."""
        return self._splits[split]

    def render(self, problem: Problem) -> list[Message]:
        """The question."""
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        """1 if math-verify finds the boxed answer equal to gold, else 0."""
        answer = last_boxed(after_thinking(text))
        if answer is None:
            detail = r"The answer has no complete \boxed{}."
            return judged(problem, 0.0, "no boxed answer", ADVICE, detail)
        category = self._judge(problem.answer, answer)
        detail = f"Expected: {shorten(problem.answer)}\nGot: {shorten(answer) or '(nothing)'}"
        if category == "timeout":
            detail += f"\nIt could not be compared within {self._timeout_s:g} s."
        return judged(problem, float(category == "correct"), category, ADVICE, detail)

    def _judge_anew(self, gold: str, answer: str) -> str:
        """The category of an answer."""
        if answer == gold:
            return "correct"
        if not answer or len(answer) > MAX_ANSWER:
            return "unreadable answer"
        try:
            return self._workers.call("judge", gold, answer, timeout_s=self._timeout_s)
        except CallTimeout:
            return "timeout"
        except CallCrashed:
            return "scorer crashed"
        except CallRaised:  # out of memory or of stack
            return "unreadable answer"

    def _parse(self, id: str, row: Row, where: str) -> Problem:
        question = column(row, _field(row, self._question, _QUESTIONS), where)
        gold = final_of(as_text(column(row, _field(row, self._answer, _ANSWERS), where)))
        if not isinstance(question, str) or not question.strip() or not gold:
            raise TaskError(f"{where}: needs a question and an answer that are not empty")
        return Problem(id, question.strip(), gold)


def final_of(gold: str) -> str:
    r"""The final answer within gold: after `####`, in the last `\boxed{…}`, or all of it."""
    _, marked, rest = gold.rpartition("####")
    if marked:
        return rest.strip()
    boxed = last_boxed(gold)
    return gold.strip().strip("$").strip() if boxed is None else boxed


def _field(row: Row, named: str | None, usual: Sequence[str]) -> str:
    return named or next((name for name in usual if name in row), usual[0])


class Grader:
    """math-verify itself; lives in the worker process."""

    def __init__(self) -> None:
        try:
            import math_verify
        except ImportError as error:
            raise TaskError(
                f"task math needs math-verify: pip install 'fst_jax[tasks]' ({error})"
            ) from error
        logging.disable()  # it logs each answer that it cannot read
        self._library = math_verify
        self._gold = lru_cache(maxsize=256)(self._read)
        self.judge("1", "1")  # builds its parsers
        _limit_memory()

    def judge(self, gold: str, answer: str) -> str:
        """The category of an answer."""
        try:
            return self._compared(gold, answer)
        except MemoryError as error:  # the answer's, not the process's, whose parsers are costly
            raise ValueError("it takes too much memory") from error

    def _compared(self, gold: str, answer: str) -> str:
        read = self._read(answer)
        # The library's own time limits need the alarm that ends this process with its parent.
        if self._library.verify(self._gold(gold), read, timeout_seconds=None):
            return "correct"
        # What it cannot parse it gives back as text.
        return "wrong answer" if any(not isinstance(x, str) for x in read) else "unreadable answer"

    def _read(self, answer: str) -> list[object]:
        """What math-verify makes of a boxed answer."""
        return self._library.parse(rf"\boxed{{{answer}}}", parsing_timeout=None)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY if most == resource.RLIM_INFINITY else min(_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
