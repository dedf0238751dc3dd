"""Code output: real programs of the library, and every way of getting them wrong."""

import json

import pytest

from fst_jax.config import TaskSettings
from fst_jax.tasks.code_io import ADVICE
from fst_jax.tasks.registry import load_task
from fst_jax.tasks.task import Problem

pytest.importorskip("reasoning_gym", reason="pip install 'fst_jax[tasks]' to test code_io")


@pytest.fixture(scope="module")
def code_io():
    options = {"train_size": 40, "test_size": 10}
    return load_task(TaskSettings(name="code_io", options=options))


def test_gold_outputs_of_real_programs_earn_one(code_io):
    for problem in [*code_io.problems("test"), *code_io.problems("train")]:
        assert "predict the output" in code_io.render(problem)[0]["content"]
        value = json.loads(problem.answer)
        for text in (
            f"<think>Trace it.</think> So <answer>{problem.answer}</answer>",
            f"```json\n{json.dumps(value, indent=3)}\n```",
            f"\\boxed{{{json.dumps(value, separators=(',', ':'))}}}",
        ):
            assert code_io.score(problem, text).reward == 1.0


def test_outputs_of_other_programs_earn_nothing(code_io):
    problems = code_io.problems("train")[:]
    for one, other in zip(problems, problems[1:], strict=False):
        if one.answer != other.answer:
            assert code_io.score(one, f"<answer>{other.answer}</answer>").reward == 0.0


GOLD = {"total": 7, "names": ["a", "b"], "ok": True, "mean": 2.5}


@pytest.mark.parametrize(
    ("answer", "category", "told"),
    [
        ({**GOLD, "total": 7.0}, "correct", "The output is right."),
        ({**GOLD, "total": 8}, "wrong value", "In the output, key 'total': 8 instead of 7."),
        ({**GOLD, "ok": 1}, "wrong type", "key 'ok': expected the JSON type boolean, got number."),
        ({**GOLD, "total": "7"}, "wrong type", "expected the JSON type number, got string."),
        ({"total": 7, "x": 1}, "wrong keys", "lacks mean, names, ok and should not have x."),
        ({**GOLD, "names": ["a"]}, "wrong length", "key 'names' has 1 elements instead of 2."),
        ({**GOLD, "names": ["a", "c"]}, "wrong value", 'element 1: "c" instead of "b".'),
        ([1], "wrong type", "In the output: expected the JSON type object, got array."),
        (None, "wrong type", "got null"),
    ],
)
def test_feedback_names_the_first_difference(code_io, answer, category, told):
    score = code_io.score(_problem(GOLD), f"<answer>{json.dumps(answer)}</answer>")
    assert (score.category, score.reward) == (category, float(category == "correct"))
    assert told in score.feedback
    assert score.feedback.split("\n")[0] in ADVICE[category]
    if score.reward == 0:
        assert f"Expected: {json.dumps(GOLD)}" in score.feedback


@pytest.mark.parametrize(
    ("text", "category", "told"),
    [
        ("", "no answer", "Nothing was answered."),
        ("<think>the loop runs", "no answer", "Nothing was answered after the thinking."),
        ("<answer>{'total': 7}</answer>", "not JSON", "Python's notation"),
        ("<answer>(1, 2)</answer>", "not JSON", "Python's notation"),
        ('<answer>{"total": 7</answer>', "not JSON", "not valid JSON: Expecting"),
        ("<answer>seven</answer>", "not JSON", "not valid JSON"),
        ("<answer>" + "[" * 100_000 + "</answer>", "not JSON", "nested too deeply"),
        ("<answer>" + "9" * 5000 + "</answer>", "not JSON", "not valid JSON"),
        ("[" * 900 + "]" * 900, "wrong type", "expected the JSON type object"),
    ],
)
def test_format_errors_are_told(code_io, text, category, told):
    score = code_io.score(_problem(GOLD), text)
    assert (score.category, score.reward) == (category, 0.0)
    assert told in score.feedback


def test_deeply_nested_values_are_compared_or_given_up(code_io):
    deep = "[" * 700 + "1" + "]" * 700
    problem = Problem("x", "?", deep)
    assert code_io.score(problem, deep).reward in (0.0, 1.0)
    assert code_io.score(problem, deep.replace("1", "2")).reward == 0.0


def _problem(gold):
    return Problem("train-0", "?", json.dumps(gold))
