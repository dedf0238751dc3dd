"""Reading answers out of completions."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.tasks.extract import (
    after_thinking,
    final_answer,
    last_boxed,
    last_fenced,
    last_tagged,
    shorten,
)


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
        (r"} \boxed{1{2}3} }", "1{2}3"),
        (r"\boxed{1} {\boxed{2} {", "2"),
        ("\\\\boxed{6}", "6"),
        (r"\boxed{a \\}", "a \\\\"),
        (r"\boxed{a \}", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer> a </answer>", "a"),
        ("<ANSWER>a</Answer> <answer>b</answer>", "b"),
        ("<answer>a</answer> <answer>b", "a"),
        ("<answer>a <answer>b</answer></answer>", "b"),
        ("İ<answer>a</answer>", "a"),
        ("</answer>a<answer>", None),
        ("a", None),
    ],
)
def test_last_tagged(text, content):
    assert last_tagged(text) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("```\na\n```", "a"),
        ("```python\na\n  ```\n```json \nb\nc```", "b\nc"),
        ("```\na\n```\n```\nb", "a"),
        ("```a```", None),
        ("```\na", None),
    ],
)
def test_last_fenced(text, content):
    assert last_fenced(text) == content


@pytest.mark.parametrize(
    "scrap",
    [
        "<answer>",
        "</answer>",
        r"\boxed{",
        "{",
        "}",
        "```\n",
        "```",
        " ",
        "\\",
        "<think>",
        "1,",
        "\t\n",
    ],
)
def test_time_is_linear_in_the_text(scrap):
    """A model that repeats itself to the end writes some hundred thousand characters."""
    start = time.monotonic()
    for text in (scrap * (300_000 // len(scrap)), f"<answer>```\n\\boxed{{{scrap * 100_000}"):
        final_answer(text)
        final_answer(text, multiline=True)
    assert time.monotonic() - start < 5  # minutes, where it is quadratic


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
