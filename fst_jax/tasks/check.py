"""Try a task before a run does: render problems, score sample answers, time the scorer.

What is looked for is what would spoil a run quietly: an answer key that earns nothing, a scorer
that raises, is slow or gives other rewards the second time, feedback without words, or whose first
line speaks of one problem, and problems that both splits hold.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from fst_jax.tasks.extract import shorten
from fst_jax.tasks.fuzz import forms, random_answers
from fst_jax.tasks.judge import judge, judge_all
from fst_jax.tasks.task import Problem, Score, Split, Task

LOOKED_AT = 64  # problems of each split
FUZZED = 200  # random answers
BATCH = 256  # answers of a step in the paper
SLOW_S = 3.0  # for a batch: 5 % of the paper's step of a minute
_CATEGORIES = 40
_SHOWN = 1500  # characters of a problem


@dataclass(frozen=True)
class Sample:
    """An answer that was tried on a problem."""

    what: str
    text: str
    score: Score
    seconds: float


@dataclass(frozen=True)
class Report:
    """What a check saw; `findings` holds a sentence for each thing to mend."""

    task: Task
    sizes: dict[Split, int]
    problem: Problem
    samples: list[Sample]
    answer_s: list[float]  # of each random answer, one after the other
    batch_s: float  # of `BATCH` answers, judged as a run judges them
    findings: list[str]


def check(task: Task, disjoint: bool = True) -> Report:
    """Try a task; `disjoint` tells that no question may be in both splits.

    Raises:
      TaskError: it raised.
    """
    shown: dict[Split, list[Problem]] = {}
    sizes: dict[Split, int] = {}
    splits: tuple[Split, Split] = ("train", "test")
    for split in splits:
        problems = task.problems(split)
        sizes[split] = len(problems)
        shown[split] = [problems[i] for i in range(min(len(problems), LOOKED_AT))]
    train = shown["train"]
    samples = [_tried(task, train[0], *sample) for sample in _sample_answers(task, train)]
    texts = list(random_answers(train, FUZZED, seed=0))
    tried = [_tried(task, train[i % len(train)], "random", text) for i, text in enumerate(texts)]
    start = time.monotonic()
    golden = [(problem, text) for problem in train for text in forms(problem.answer).values()]
    scores = judge_all(task, [golden[i % len(golden)] for i in range(max(BATCH, len(golden)))])
    batch_s = (time.monotonic() - start) * BATCH / max(BATCH, len(golden))
    findings = [
        *_of_problems(task, shown, disjoint),
        *_of_gold(golden, scores, _tried(task, train[0], "empty", "").score),
        *_of_scores(task, train, [*samples, *tried], scores[: len(golden)], golden),
    ]
    if batch_s > SLOW_S:
        findings.append(
            f"scoring {BATCH} answers takes {batch_s:.1f} s, more than {SLOW_S:g} s: 5 % of a step "
            "of a minute"
        )
    seconds = [sample.seconds for sample in tried]
    return Report(task, sizes, train[0], samples, seconds, batch_s, findings)


def shown(report: Report) -> str:
    """A report as text."""
    task, problem = report.task, report.problem
    rendered = task.render(problem)
    lines = [
        f"task {task.name}: {report.sizes['train']} train and {report.sizes['test']} test problems",
        "",
        f"problem {problem.id}, as a model is asked it:",
        f"  system: {shorten(task.seed_prompt, 300)}",
        *(f"  {message['role']}: {_indented(message['content'])}" for message in rendered),
        f"  gold: {shorten(problem.answer, 300) or '(none)'}",
        "",
        "sample answers:",
    ]
    for sample in report.samples:
        score = sample.score
        lines.append(f"  {sample.what}: {shorten(sample.text, 80) or '(nothing)'}")
        lines.append(f"    reward {score.reward:.3g}, {score.category} ({_ms(sample.seconds)})")
        lines += [f"    | {shorten(line, 160)}" for line in score.feedback.split("\n")]
    times = report.answer_s
    lines += [
        "",
        f"scorer: {_ms(median(times))} an answer in the median, {_ms(quantiles(times, n=100)[98])} "
        f"at the 99th percentile of {len(times)} random ones; {BATCH} answers of a step "
        f"{report.batch_s:.2f} s",
        "",
    ]
    if report.findings:
        lines += ["to mend:", *(f"  - {finding}" for finding in report.findings)]
    else:
        lines += ["nothing to mend"]
    return "\n".join(lines)


def _sample_answers(task: Task, problems: Sequence[Problem]) -> Iterator[tuple[str, str]]:
    """(what it is, text) of answers to the first of the problems."""
    gold = problems[0].answer
    rewards = {}
    for form, text in forms(gold).items():
        rewards[form] = judge(task, problems[0], text).reward
        yield f"gold, {form}", text
    other = next((p.answer for p in problems if p.answer != gold), None)
    if other is not None:
        best = max(rewards, key=rewards.__getitem__)
        yield f"another problem's gold, {best}", forms(other)[best]
    yield "nothing", ""
    yield "thinking that never ends", f"<think>Let me see: {gold}"
    yield "prose", "I am not sure, but it could be one of several things."


def _tried(task: Task, problem: Problem, what: str, text: str) -> Sample:
    start = time.monotonic()
    score = judge(task, problem, text)
    return Sample(what, text, score, time.monotonic() - start)


def _of_problems(task: Task, shown: dict[Split, list[Problem]], disjoint: bool) -> Iterator[str]:
    questions = {split: {p.question for p in problems} for split, problems in shown.items()}
    shared = len(questions["train"] & questions["test"])
    if shared and disjoint:
        yield f"{shared} of the first questions are in both splits: test would be trained on"
    ids = [problem.id for problems in shown.values() for problem in problems]
    if len(set(ids)) < len(ids):
        yield "problems share an id: ids must be unique over both splits"
    for problem in [*shown["train"][:8], *shown["test"][:8]]:
        again = task.render(problem)
        if again != task.render(problem):
            yield f"problem {problem.id!r} is rendered differently the second time"
            return


def _of_gold(
    golden: Sequence[tuple[Problem, str]], scores: Sequence[Score], empty: Score
) -> Iterator[str]:
    best: dict[str, float] = {}
    for (problem, _), score in zip(golden, scores, strict=False):
        best[problem.id] = max(best.get(problem.id, 0.0), score.reward)
    known = {problem.id for problem, _ in golden if problem.answer}
    unpaid = [id for id in known if best[id] <= 0]
    if unpaid:
        yield (
            f"the answer of {len(unpaid)} of {len(known)} problems, {sorted(unpaid)[0]!r} among "
            "them, earns nothing alone, tagged, boxed or fenced: a right answer must be paid"
        )
    if empty.reward > 0:
        yield f"an empty answer earns {empty.reward:g}"


def _of_scores(
    task: Task,
    problems: Sequence[Problem],
    tried: Sequence[Sample],
    golden_scores: Sequence[Score],
    golden: Sequence[tuple[Problem, str]],
) -> Iterator[str]:
    scores = [*(sample.score for sample in tried), *golden_scores]
    if any(not score.feedback.strip() for score in scores):
        yield "some feedback is empty: prompts learn from it"
    if any(not score.category.strip() for score in scores):
        yield "some category is empty: name the kind of outcome"
    categories = {score.category for score in scores}
    if len(categories) > _CATEGORIES:
        yield f"{len(categories)} categories: a category must not depend on the single problem"
    advice = {score.feedback.strip().partition("\n")[0] for score in scores}
    if len(advice) > 2 * _CATEGORIES:
        yield (
            f"{len(advice)} different first lines of feedback: the first line is advice for any "
            "problem; what speaks of this answer comes in the lines after it"
        )
    for (problem, _), score in zip(golden, golden_scores, strict=False):
        first = score.feedback.strip().partition("\n")[0]
        if len(problem.answer) > 3 and problem.answer in first:
            yield f"the first line of feedback tells the answer of {problem.id!r}: {first!r}"
            break
    again = judge_all(task, [(problems[0], sample.text) for sample in tried[:8]])
    if [score.reward for score in again] != [sample.score.reward for sample in tried[:8]]:
        yield "the same answer earns another reward the second time: scoring must be pure"


def _indented(text: str) -> str:
    """The beginning of a text, its further lines indented."""
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return "\n    ".join(cut.splitlines())


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
