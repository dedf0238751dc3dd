r"""Any data set of the library reasoning-gym, CodeIO among them.

The library generates problems and scores answers; this task adds disjoint
splits, a rule for reading the answer, and feedback in words.

The answer is the last `<answer>…</answer>`, else the last `\boxed{…}`, else the
last fenced block, else the last line (the whole text where answers have several
lines).  With `answer_in_sentence`, "The sum is 15." counts as 15: what is read is
the last number, or the last of a closed set of answers, in it.

The reward is the library's, with three corrections: a reward of 0.05 or less,
which many data sets pay for any text at all, is 0; an answer outside a closed
set of answers earns 0; a JSON answer equal in value to the expected one earns 1
however it is spaced.  CodeIO asks for outputs only, as in the paper,
unless `parameters` says otherwise.

The library runs in a worker process, both to generate and to score, in a scratch
folder: CodeIO executes code, some of which writes files, and other data sets
evaluate the model's text; either may hang.  A CodeIO problem whose answer changes
when it is run again (its code draws random numbers or reads the clock) is left out.
"""

import contextlib
import difflib
import io
import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fst_jax.errors import TaskError
from fst_jax.tasks.advice import judged
from fst_jax.tasks.extract import final_answer, shorten
from fst_jax.tasks.kinds import SAMPLE, kind_of
from fst_jax.tasks.scorers import NOT_JSON, parse_json, same_json
from fst_jax.tasks.splits import Splits
from fst_jax.tasks.task import Message, Problem, Score, Split
from fst_jax.tasks.worker import CallCrashed, CallTimeout, Workers

_DEFAULTS: dict[str, dict[str, Any]] = {
    # Despite its name this is the probability of asking for the output.
    "codeio": {"input_prediction_probability": 1.0},
}
_DRAW_S = 60.0
_WORTHLESS = 0.05

_ADVICE: dict[str, tuple[str, ...]] = {
    "correct": ("Keep giving the final answer in the same form.",),
    "no answer": (
        "Always end with a final answer inside <answer> and </answer>.",
        "Keep the reasoning short enough to reach a final answer.",
    ),
    "wrong answer": (
        "Work through the problem in small steps and check each one before answering.",
        "Read the question again and make sure that the answer meets every condition.",
        "Check the answer against the question before giving it.",
    ),
    "partly right": (
        "Make sure that every part of the answer is right and that nothing is left out.",
        "Check the answer part by part before giving it.",
    ),
    "unreadable answer": (
        "Write the answer exactly in the format that the question shows.",
        "Copy the layout of the example in the question when you write the answer.",
    ),
    "timeout": ("Write the final answer in its simplest form.",),
    "scorer crashed": ("Write the final answer in its simplest form.",),
}


class ReasoningGym:
    """One data set of reasoning-gym as a task."""

    seed_prompt = "Solve the problem. Put the final answer inside <answer> and </answer>."

    def __init__(
        self,
        dataset: str,
        train_size: int = 10_000,
        test_size: int = 200,
        seed: int = 0,
        parameters: dict[str, Any] | None = None,
        answer_in_sentence: bool = False,
        *,
        timeout_s: float = 10.0,
    ):
        """`parameters` go to the data set's own configuration.

        `answer_in_sentence` rewards a right answer within a sentence, so that weak
        models earn something before they learn the format.
        """
        self.name = f"reasoning_gym/{dataset}"
        self._timeout_s = timeout_s
        self._answer_in_sentence = answer_in_sentence
        self._splits = Splits(
            self.name, self._draw, lambda problem: problem.question, train_size, test_size
        )
        self._scratch = tempfile.TemporaryDirectory(prefix="fst_jax_", ignore_cleanup_errors=True)
        self._workers = Workers(
            "fst_jax.tasks.reasoning_gym:library_in",
            self._scratch.name,
            dataset,
            Splits.stream_length(train_size, test_size),
            seed,
            {**_DEFAULTS.get(dataset, {}), **(parameters or {})},
        )
        sample = [self._draw(position) for position in range(test_size, test_size + SAMPLE + 10)]
        self.kind = kind_of([problem.answer for problem in sample if problem is not None])
        self._advice = {**_ADVICE, "wrong format": self.kind.advice}

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, each made on demand."""
        return self._splits.problems(split)

    def render(self, problem: Problem) -> list[Message]:
        """The library's question as one user message."""
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        """The library's reward for the answer in `text`; see the module's first paragraph."""
        answer = final_answer(text, multiline=self.kind.name == "several lines")
        if self._answer_in_sentence and not self.kind.fits(answer):
            answer = self.kind.last_in(answer)
        reward, category = self._judge(problem, answer)
        expected = shorten(problem.answer) or "any answer that meets the conditions"
        detail = f"Expected: {expected}\nGot: {shorten(answer) or '(nothing)'}"
        if category in ("timeout", "scorer crashed"):
            detail += f"\nThe scorer could not judge it within {self._timeout_s:g} s."
        return judged(problem, reward, category, self._advice, detail)

    def _judge(self, problem: Problem, answer: str) -> tuple[float, str]:
        """(reward, category) of an answer."""
        if not answer:
            return 0.0, "no answer"
        gold, fits = problem.answer, self.kind.fits(answer)
        if self.kind.name == "choice" and not fits and answer != gold:
            return 0.0, "wrong format"
        if self.kind.name == "JSON" and fits:
            expected = parse_json(gold)
            if expected is not NOT_JSON and same_json(parse_json(answer), expected):
                return 1.0, "correct"
        try:
            reward = self._workers.call(
                "judge", problem.data["position"], answer, timeout_s=self._timeout_s
            )
        except CallTimeout:
            return 0.0, "timeout"
        except CallCrashed:
            return 0.0, "scorer crashed"
        if reward is None:
            return 0.0, "unreadable answer"
        reward = min(max(reward, 0.0), 1.0) if reward > _WORTHLESS else 0.0
        if reward > 0.999:
            return 1.0, "correct"
        if not fits:
            return reward, "wrong format"
        return (reward, "partly right") if reward else (0.0, "wrong answer")

    def _draw(self, position: int) -> Problem | None:
        try:
            drawn = self._workers.call("draw", position, timeout_s=_DRAW_S)
        except (CallTimeout, CallCrashed):
            return None
        if drawn is None:
            return None
        question, answer = drawn
        return Problem(str(position), question, answer, {"position": position})


def library_in(folder: str, *arguments: Any) -> "Library":
    """The library, with `folder` as the working folder of the process."""
    os.chdir(folder)
    return Library(*arguments)


class Library:
    """The library itself; lives in the worker process."""

    def __init__(self, dataset: str, size: int, seed: int, parameters: dict[str, Any]):
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise TaskError(
                "task reasoning_gym needs the library reasoning-gym: "
                f"pip install 'fst_jax[tasks]' ({error})"
            ) from error
        warnings.simplefilter("ignore")
        names = [name for name in DATASETS if name != "composite"]
        if dataset not in names:
            near = difflib.get_close_matches(dataset, names, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {names}"
            raise TaskError(f"reasoning-gym has no data set {dataset!r}: {hint}")
        fields = {name for name in DATASETS[dataset][1].__dataclass_fields__}
        for name in sorted(parameters):
            if name not in fields - {"seed", "size"}:
                raise TaskError(
                    f"task.options.parameters: data set {dataset} has no parameter {name!r}; it "
                    f"has {', '.join(sorted(fields - {'seed', 'size'}))}"
                )
        # The library seeds problem i with seed + i: neighbouring seeds would share problems.
        far = int(np.random.SeedSequence(abs(seed)).generate_state(1)[0]) >> 1
        try:
            with _quiet():
                self._data = create_dataset(dataset, size=size, seed=far, **parameters)
        except Exception as error:
            raise TaskError(
                f"reasoning-gym refused data set {dataset} of size {size} with parameters "
                f"{parameters}: {type(error).__name__}: {error}"
            ) from error
        self._executes_code = dataset == "codeio"
        self._entry = lru_cache(maxsize=2048)(self._make)

    def draw(self, position: int) -> list[str] | None:
        """[question, answer] at a position; None if the data set has no usable one there."""
        try:
            entry = self._entry(position)
            if self._executes_code and self._make(position, attempt=1) != entry:
                return None
        except Exception:
            return None
        metadata = entry.get("metadata", {})
        if metadata.get("output_data", 0) == metadata.get("input_data", 0) == {}:
            return None  # CodeIO's mark for code that failed
        answer = entry["answer"]
        return [entry["question"].strip(), "" if answer is None else str(answer)]

    def judge(self, position: int, answer: str) -> float | None:
        """The library's reward; None if its scorer could not read the answer."""
        entry = self._entry(position)
        try:
            with _quiet():
                return float(self._data.score_answer(answer, entry))
        except Exception:
            return None

    def _make(self, position: int, attempt: int = 0) -> dict[str, Any]:
        if self._executes_code:  # the code may draw from these; `attempt` shows whether it does
            random.seed(position + attempt)
            np.random.seed((position + attempt) % 2**32)
        with _quiet():
            return self._data[position]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Several data sets print while they work."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
