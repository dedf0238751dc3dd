"""Kept replies: found again by their request, whatever a kill left of the file."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.errors import RunError
from fst_jax.fast.replies import Replies, Reply

ASKED = {"model": "m", "messages": [{"role": "user", "content": "Größer?"}], "seed": 3}
REPLY = Reply("```\nSay größer 😀\n```", "stop", 2, 11, 7)


def test_a_reply_is_found_by_its_whole_request(tmp_path) -> None:
    path = tmp_path / "reflections.jsonl"
    Replies(path).keep(ASKED, REPLY)
    again = Replies(path)
    assert again.get(dict(reversed(ASKED.items()))) == REPLY and len(again) == 1
    for change in ({"seed": 4}, {"model": "n"}, {"messages": []}, {"more": 1}):
        assert again.get(ASKED | change) is None
    assert set(json.loads(path.read_text())) == {
        *("request", "content", "finish_reason", "calls", "prompt_tokens", "completion_tokens"),
        "crc32",
    }


@given(st.data())
def test_any_cut_loses_the_last_reply_alone(tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("cut") / "reflections.jsonl"
    replies = Replies(path)
    for i in range(3):
        replies.keep(ASKED | {"seed": i}, Reply("größer " * i, None, 1, i, i))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:kept])
    again = Replies(path)
    for i in range(3):
        there = kept >= len(b"".join(lines[: i + 1])) - 1  # a line's end may be missing
        assert (again.get(ASKED | {"seed": i}) is not None) == there
    again.keep(ASKED, REPLY)
    last = Replies(path)
    assert last.get(ASKED) == REPLY and len(last) == len(again)


def test_lines_that_are_no_replies_are_passed_over(tmp_path) -> None:
    path = tmp_path / "reflections.jsonl"
    Replies(path).keep(ASKED, REPLY)
    good = path.read_text()
    bad = ["[]", "3", "{}", '{"request": "a", "content": 3}', "\x00\xff", good[:40]]
    huge = good.replace('"calls": 2', '"calls": 1e999')
    path.write_text("\n".join([*bad, huge.strip(), good]))
    assert len(Replies(path)) == 1 and Replies(path).get(ASKED) == REPLY


def test_threads_write_whole_lines(tmp_path) -> None:
    path = tmp_path / "reflections.jsonl"
    replies = Replies(path)

    def keep(i: int) -> None:
        replies.keep(ASKED | {"seed": i}, Reply("x" * 10_000, "stop", 1, i, i))

    threads = [threading.Thread(target=keep, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Replies(path)) == 16


def test_without_a_file_they_last_as_long_as_the_process() -> None:
    replies = Replies(None)
    replies.keep(ASKED, REPLY)
    assert replies.get(ASKED) == REPLY and len(Replies(None)) == 0


def test_a_file_that_cannot_be_used_is_named(tmp_path) -> None:
    with pytest.raises(RunError, match="cannot read .*reflections.jsonl"):
        (tmp_path / "reflections.jsonl").mkdir()
        Replies(tmp_path / "reflections.jsonl")
    with pytest.raises(RunError, match="cannot write .*none"):
        Replies(tmp_path / "none/reflections.jsonl").keep(ASKED, REPLY)
