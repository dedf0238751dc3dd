"""Reading answers: every way in which models wrap a prompt, and what is none."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.fast.answer import edited_prompt


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("```\nyes\n```", "yes"),
        # Prose around it, and drafts before it.
        ("Diagnosis.\n```prompt\nyes\n```\nI hope this helps.", "yes"),
        ("```\nfirst\n```\nBetter:\n```text\nlast\nline\n```", "last\nline"),
        # Thoughts, with drafts of their own.
        ("<think>\n```\nno\n```\n</think>\n```\nyes\n```", "yes"),
        ("<think>a</think>Hm.<think>b</think>\n```\nyes\n```", "yes"),
        ("```\nyes\n```\n<think>Is it good? Yes.</think>", "yes"),
        ("<think>a<think>b</think>\n```\nyes\n```", "yes"),
        # The opening tag is in the chat template.
        ("I think no box.</think>```prompt\nyes\n```\n", "yes"),
        ("Draft:\n```\nno\n</think>\n```\nyes\n```", "yes"),
        ("<think>a</think>```\nno\n```\n</think>\n```\nyes\n```", "yes"),
        # The closing tag was forgotten, and the answer ends as it was asked to.
        ("<think>What is missing? A box.\n```\nyes\n```\n", "yes"),
        ("<think>Or:\n```\nno\n```\nRather:\n```\nyes\n```", "yes"),
        # The last fence was forgotten.
        ("So:\n```\nyes\nand yes", "yes\nand yes"),
        ("```\nno\n```\nBetter:\n```\nyes", "yes"),
        ("```\nyes\n```\n```", "yes"),
        # Fences of other lengths, a code block within the prompt, a fence at a line's end.
        ("````\nSay:\n```\ncode\n```\nso.\n````", "Say:\n```\ncode\n```\nso."),
        ("```\nSay:\n```python\ncode\n```\nso.\n```", "Say:\n```python\ncode\n```\nso."),
        ("````\n```json\n````", "```json"),
        ("```\nclosed at once```", "closed at once"),
        ("```\nWrite it as ```answer```\nand stop.\n```", "Write it as ```answer```\nand stop."),
        ("  ```\n  indented\n  ```", "indented"),
        ("```\r\nyes\r\n```\r\n", "yes"),
        ("```\n```", ""),  # which validation refuses
    ],
)
def test_the_last_block_is_the_prompt(answer: str, text: str) -> None:
    assert edited_prompt(answer) == (text, None)


@pytest.mark.parametrize(
    ("answer", "finish_reason", "refusal"),
    [
        ("```\nwhole\n```", "length", "truncated"),
        ("", "length", "truncated"),
        ("```\nhalf a pro", None, "truncated"),
        ("```\nhalf a pro", "content_filter", "truncated"),
        ("<think>Hm, ```\nno\n```", None, "truncated"),
        ("", "stop", "empty answer"),
        (" \n\t", "stop", "empty answer"),
        ("<think>I cannot say.</think>", "stop", "only thinking"),
        ("I cannot say.</think>\n", "stop", "only thinking"),
        ("<think>I cannot say.", "stop", "only thinking"),
        ("<think>Draft:\n```\nno\n```\nNo, that is wrong.", "stop", "only thinking"),
        ("<think>Draft:\n```\nno", "stop", "only thinking"),
        ("Use a box.", "stop", "no fenced prompt"),
        ("Use ``` as a fence.", "stop", "no fenced prompt"),
        ("Here it is:\n```\n", "stop", "no fenced prompt"),
    ],
)
def test_what_is_no_whole_prompt(answer: str, finish_reason: str | None, refusal: str) -> None:
    assert edited_prompt(answer, finish_reason) == ("", refusal)


parts = st.sampled_from(["<think>", "</think>", "```", "````", "```json", "\n", "a", "b c", " "])


@given(st.lists(parts, max_size=30).map("".join), st.sampled_from(["stop", "length", None]))
def test_any_answer_is_read_or_refused(answer: str, finish_reason: str | None) -> None:
    text, refusal = edited_prompt(answer, finish_reason)
    assert (refusal is None) or text == ""
    assert text == text.strip()
    # Nothing is made up: every line of a prompt stands in the answer.
    assert all(line.strip() in answer for line in text.splitlines())


@given(
    st.text(st.characters(blacklist_characters="`<\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")).filter(
        lambda text: text.strip()
    ),
    st.sampled_from(["", "So:\n", "<think>a\n```\nb\n```\n</think>", "```\nold\n```\n"]),
)
def test_any_prompt_comes_through(prompt: str, before: str) -> None:
    lines = "\n".join(prompt.splitlines()).strip()
    assert edited_prompt(f"{before}```\n{prompt}\n```") == (lines, None)


@pytest.mark.parametrize("part", ["<think>", "</think>", "```\n", "```a\n", "word ", "\n", "`"])
def test_long_answers_take_no_time(part: str) -> None:
    began = time.monotonic()
    edited_prompt(part * 100_000)
    assert time.monotonic() - began < 2


EXAMPLE = "Answer in a block:\n```\nyour query\n```\nUse names only."


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (f"Edited:\n````\n{EXAMPLE}\n````", (EXAMPLE, None)),
        (f"`````\n{EXAMPLE}\n`````", (EXAMPLE, None)),
        ("```\nBe brief.\n```", ("Be brief.", None)),  # nothing within: no doubt
        (f"```\n{EXAMPLE}\n```", ("", "unclear fences")),
        ("```\nSearch, in a block fenced by ```\nNow.\n```", ("", "unclear fences")),
        ("```\nBe brief.\n```\nAs in\n```\n42\n```", ("", "unclear fences")),
        ("no block", ("", "no fenced prompt")),
    ],
)
def test_prompts_that_hold_fences_want_a_longer_one_around_them(answer, found) -> None:
    assert edited_prompt(answer, "stop", "````") == found


def test_a_block_that_ended_too_early_is_refused() -> None:
    answer = "```\nSearch, in a block fenced by ```\nNow.\n```"
    assert edited_prompt(answer) == ("", "unclear fences")


def test_a_prompt_may_begin_beside_its_fence() -> None:
    assert edited_prompt("```Solve it.\nThen check it.\n```") == ("Solve it.\nThen check it.", None)
    assert edited_prompt("```markdown\nSolve it.\n```") == ("Solve it.", None)
