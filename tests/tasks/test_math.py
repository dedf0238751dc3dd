r"""Mathematics: math-verify's conventions, hostile answers, and the data's many forms."""

import json
import logging
import time

import pytest

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.tasks.math import ADVICE, MAX_ANSWER, Grader, Math, final_of
from fst_jax.tasks.registry import load_task
from fst_jax.tasks.task import Problem
from tests.task_samples import GSM8K, MATH, POLARIS, write_jsonl, write_tfds
from tests.tasks.math_pairs import pairs

math_verify = pytest.importorskip("math_verify", reason="pip install 'fst_jax[tasks]' to test math")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("math") / "polaris.jsonl", POLARIS)
    return load_task(TaskSettings(name="math", options={"train": path, "test_size": 8}))


def _check_pairs(task, chosen):
    for family, gold, answer, equal in chosen:
        score = task.score(Problem("p", "?", gold), rf"So \boxed{{{answer}}}.")
        assert score.reward == float(equal), (family, gold, answer, score)


def test_pairs_are_graded_by_math_verifys_conventions(task):
    _check_pairs(task, pairs()[::5])


@pytest.mark.slow
def test_five_hundred_pairs_are_graded_as_the_library_itself_grades_them(task):
    assert len(pairs()) >= 500
    _check_pairs(task, pairs())
    logging.disable()
    try:
        for family, gold, answer, equal in pairs():
            read = (math_verify.parse(rf"The answer is $\boxed{{{x}}}$.") for x in (gold, answer))
            assert math_verify.verify(*read) == equal, (family, gold, answer)
    finally:
        logging.disable(logging.NOTSET)


HOSTILE = [
    r"9^{9^{9^{9}}}",
    r"2^{2^{2^{2^{2^2}}}}",
    "10**10**10",
    "1e999999999",
    "999999999!",
    r"\prod_{k=1}^{10^9} k",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n^n}",
    r"\binom{10^9}{5\cdot 10^8}",
    "(x+1)^{100000}",
    r"(a+b+c+d+e+f)^{50} - (a+b+c+d+e+f)^{49}",
    r"(\sin(x)+\cos(x))^{200}",
    r"\int_0^1 x^{x^{x^x}} dx",
    "(" * 400 + "1" + ")" * 400,
    "{" * 300 + "}" * 300,
    r"\sqrt{" * 100 + "2" + "}" * 100,
    r"\left(" * 100,
    "a" * 900,
    r"x^{y^{z^{w^{v^{u}}}}}+" * 20 + "1",
    r"\{" + ",".join(f"x_{i}" for i in range(150)) + r"\}",
    r"\gcd(10^{10^{10}},3)",
    "7" * 100_000,
    r"\frac{" * 50_000,
]


def _hold_up(tmp_path, answers):
    path = write_jsonl(tmp_path / "polaris.jsonl", POLARIS)
    task = load_task(
        TaskSettings(name="math", options={"train": path, "test_size": 8}, timeout_s=0.5)
    )
    problem = task.problems("train")[0]
    categories = []
    for answer in answers:
        start = time.monotonic()
        score = task.score(problem, rf"\boxed{{{answer}}}")
        # The deadline, and a new process where the last one was killed.
        assert time.monotonic() - start < 10
        assert score.reward == 0.0
        categories.append(score.category)
    assert task.score(problem, rf"\boxed{{{problem.answer}.0}}").reward == 1.0
    return categories


def test_hostile_answers_end_at_the_deadline(tmp_path):
    assert _hold_up(tmp_path, HOSTILE[:2] + HOSTILE[-2:])[0] == "timeout"


@pytest.mark.slow
def test_twenty_hostile_answers_cannot_hang_a_step(tmp_path):
    assert len(HOSTILE) >= 20
    categories = _hold_up(tmp_path, HOSTILE)
    assert set(categories) <= {
        "timeout", "wrong answer", "unreadable answer", "scorer crashed", "no boxed answer",
    }  # fmt: skip
    assert categories.count("timeout") >= 5


@pytest.mark.parametrize(
    ("text", "category"),
    [
        (r"\boxed{15}", "correct"),
        (r"<think>\boxed{3}</think> It is \boxed{\frac{30}{2}}.", "correct"),
        (r"first \boxed{4}, no: \boxed{15}", "correct"),
        (r"\boxed{16}", "wrong answer"),
        ("It is 15.", "no boxed answer"),
        (r"\boxed{15", "no boxed answer"),
        (r"<think>\boxed{15}", "no boxed answer"),
        (r"\boxed{}", "unreadable answer"),
        (rf"\boxed{{{'1' * (MAX_ANSWER + 1)}}}", "unreadable answer"),
        (r"\boxed{\begin{matrix}}", "unreadable answer"),
    ],
)
def test_categories(task, text, category):
    score = task.score(Problem("train-0", "?", "15"), text)
    assert (score.category, score.reward) == (category, float(category == "correct"))
    assert score.feedback.split("\n")[0] in ADVICE[category]


def test_feedback_shows_both_answers(task):
    feedback = task.score(Problem("train-0", "?", "15"), r"\boxed{16}").feedback
    assert "Expected: 15\nGot: 16" in feedback


def test_gold_of_every_data_set(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    (tmp_path / "hub").mkdir()
    for i, rows in enumerate((MATH[:10], MATH[10:])):
        table = pyarrow.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / f"hub/train-0000{i}-of-00002.parquet")
    as_json = tmp_path / "polaris.json"
    as_json.write_text(json.dumps(POLARIS))
    sources = {
        str(tmp_path / "hub/train-*.parquet"): (len(MATH), r"\frac{2}{"),
        str(tmp_path / "hub"): (len(MATH), r"\frac{2}{"),
        write_jsonl(tmp_path / "gsm8k.jsonl", GSM8K): (len(GSM8K), ""),
        str(as_json): (len(POLARIS), ""),
    }
    for source, (count, begins) in sources.items():
        task = Math(source, test_size=5)
        train, test = task.problems("train"), task.problems("test")
        assert len(train) + len(test) == count and len(test) == 5
        assert not {p.question for p in train} & {p.question for p in test}
        assert len({p.id for p in [*train, *test]}) == count
        for problem in [*train, *test]:
            assert problem.answer.startswith(begins) and problem.answer
            assert task.score(problem, rf"\boxed{{{problem.answer}}}").reward == 1.0
        again = Math(source, test_size=5)
        assert list(again.problems("test")) == list(test)
        assert list(Math(source, test_size=5, seed=1).problems("test")) != list(test)


def test_a_builder_of_tensorflow_datasets(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    builder = write_tfds(tmp_path)
    task = Math(f"tfds:{builder}#train", f"tfds:{builder}#test", answer_field="n")
    assert (len(task.problems("train")), len(task.problems("test"))) == (40, 10)
    problem = task.problems("train")[0]
    assert problem.question.startswith(f"Is {problem.answer} even")


def test_final_answers():
    assert final_of("2 + 2 = 4\n#### 4 ") == "4"
    assert final_of(r"So $x = \boxed{\frac{1}{2}}$, done.") == r"\frac{1}{2}"
    assert final_of(" $7$ ") == "7"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "is empty"),
        ([{"problem": "a"}] * 3, {}, "no field 'answer'"),
        ([{"problem": " ", "answer": "1"}] * 3, {}, "t.jsonl:1: needs a question and an answer"),
        (POLARIS, {"test_size": 40}, "test_size = 40 must leave both splits some of the 40"),
        (POLARIS, {"question_field": "problems"}, "did you mean 'problem'"),
        (POLARIS, {"test": "none.jsonl"}, "task.options.test: cannot read none.jsonl"),
    ],
)
def test_mistakes_are_named(tmp_path, rows, options, message):
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(TaskError, match=message):
        Math(path, **{"test_size": 1, **options})


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    with pytest.raises(TaskError, match=r"pip install 'fst_jax\[tasks\]'"):
        Grader()
