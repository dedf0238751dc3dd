"""The scorers of data files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.tasks.scorers import SCORERS, parse_number, same_number
from fst_jax.tasks.task import Problem


@pytest.mark.parametrize(
    ("scorer", "gold", "text", "category"),
    [
        ("exact", "a b", "  a  b ", "correct"),
        ("exact", "a b", "a b.", "wrong answer"),
        ("exact", "a", "", "no answer"),
        ("boxed", "1,000", r"so \boxed{1000.0}", "correct"),
        ("boxed", r"\frac{1}{2}", r"\boxed{\frac{1}{2}}", "correct"),
        ("boxed", "4", "4", "no answer"),
        ("boxed", "12", r"\boxed{1,2}", "wrong answer"),
        ("number", "42", "First 7, so the result is 42.", "correct"),
        ("number", "-3.5", "<answer>-3.50</answer> I used 9", "correct"),
        ("number", "42", "It is 41\nI am sure.", "wrong answer"),
        ("number", "42", "forty-two", "no answer"),
        ("json", '{"a": [1, 2]}', 'Result:\n```json\n{"a":[1,2]}\n```', "correct"),
        ("json", '{"a": 1, "b": 2}', 'It is {"b": 2, "a": 1}, I think', "correct"),
        ("json", "[1]", "[true]", "wrong answer"),
        ("json", "[1]", "[1", "no answer"),
        ("contains", "Paris", "The capital is paris.", "correct"),
        ("contains", "Paris", "Parisian", "wrong answer"),
        ("contains", "C++", "Use C++ here", "correct"),
        ("contains", "Paris", "", "no answer"),
    ],
)
def test_categories(scorer, gold, text, category):
    score = SCORERS[scorer].score(Problem("train-1", "?", gold), text)
    assert score.category == category
    assert score.reward == float(category == "correct")
    assert score.feedback.split("\n")[0] in SCORERS[scorer].advice[category]


@given(st.sampled_from(sorted(SCORERS)), st.text(), st.text(alphabet='\\boxed{}[]"0123456789e.,-'))
def test_never_raises(scorer, gold, text):
    assert SCORERS[scorer].score(Problem("x", "?", gold), text).reward in (0.0, 1.0)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 100_000, "1e999999999", r"\boxed{1e9999999}"]
)
@pytest.mark.parametrize("scorer", sorted(SCORERS))
def test_hostile_answers(scorer, text):
    assert SCORERS[scorer].score(Problem("x", "?", "1"), text).reward == 0.0


def test_numbers():
    assert not same_number("1234567", "1234568")
    assert same_number("0.333333", "0.3333333")
    assert parse_number("$1,234.5") == parse_number("1234.5")
    assert parse_number("nan") is None and parse_number("1e5000") is None
