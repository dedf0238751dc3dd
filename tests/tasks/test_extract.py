"""Reading answers out of completions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.tasks.extract import after_thinking, final_answer, last_boxed, shorten


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{3}", "3"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{7} and \boxed{8", "7"),
        (r"\boxed{9", None),
        ("9", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@given(st.text(alphabet="\\boxed{}<>/think answer`\n1", max_size=80))
def test_never_raises(text):
    assert isinstance(final_answer(text), str)


def test_order_of_places():
    assert final_answer(r"<answer>a</answer> \boxed{b}") == "a"
    assert final_answer("\\boxed{b}\n```json\n{}\n```") == "b"
    assert final_answer("so\n```json\n{}\n```") == "{}"
    assert final_answer("so\n\n it is c \n") == "it is c"
    assert final_answer("1 2\n3 4", multiline=True) == "1 2\n3 4"


def test_thinking_is_no_answer():
    assert after_thinking("<think>a</think> b") == "b"
    assert after_thinking("a</think>b") == "b"
    assert after_thinking("<think>a") == ""


def test_shorten():
    assert shorten("a\n b") == "a b"
    assert len(shorten("x" * 999)) == 200
