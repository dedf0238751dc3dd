"""The family tree: every prompt once, below its parent, with an edit that makes its text."""

from hypothesis import given
from hypothesis import strategies as st

from fst_jax.reporting.family import Member, condensed, difference, family, flattened
from tests.reporting.synthetic import pool

texts = st.text(alphabet="ab .,\n", max_size=30)


@given(texts, texts)
def test_a_difference_makes_both_texts(old: str, new: str) -> None:
    pieces = difference(old, new)
    assert "".join(text for kind, text in pieces if kind != "removed") == new
    assert "".join(text for kind, text in pieces if kind != "added") == old


def test_what_is_condensed_is_still_all_there() -> None:
    old = "\n".join(f"Line {n} says what to do next." for n in range(40))
    pieces = difference(old, old.replace("Line 20 says", "Line 20 tells"))
    short = condensed(pieces)
    assert "".join(text for _, text in short) == "".join(text for _, text in pieces)
    assert [kind for kind, _ in short] == [
        "left out", "same", "removed", "added", "same", "left out"
    ]  # fmt: skip
    assert sum(len(text) for kind, text in short if kind != "left out") < 300


def test_an_edited_line_is_shown_by_words_and_a_new_one_whole() -> None:
    old, new = "Keep this.\nTake the first path.", "Keep this.\nTake the last path.\nBe calm."
    assert difference(old, new) == [
        ("same", "Keep this.\nTake the "), ("removed", "first"), ("added", "last"),
        ("same", " path."), ("added", "\nBe calm."),
    ]  # fmt: skip
    assert difference("Go through it.", "Take your time.") == [
        ("removed", "Go through it."), ("added", "Take your time.")
    ]  # fmt: skip


def test_a_long_lineage_is_flattened_in_order() -> None:
    pools = [{"step": 0, "active": [], "prompts": [
        {"id": str(n), "text": "x", "parent": str(n - 1) if n else None, "origin": "rules",
         "scores": {}, "created_step": 0} for n in range(3000)
    ]}]  # fmt: skip
    found = flattened(family(pools))
    assert [generation for generation, _ in found] == list(range(3000))
    assert [member.number for _, member in found] == list(range(1, 3001))


def test_generations_scores_and_edits() -> None:
    (seed,) = family([pool(0).to_json(), pool(6).to_json()])
    (child,) = seed.children
    assert (seed.origin, seed.active, seed.alive) == ("seed", False, True)
    assert child.scores == [(0, 0.5), (6, 0.5)] and child.active
    assert ("added", "\nGo back from the goal.") in child.diff
    assert "removed" not in {kind for kind, _ in child.diff}
    assert [grand.born for grand in child.children] == [0]


def test_a_dropped_prompt_keeps_its_children() -> None:
    first, last = pool(0).to_json(), pool(6).to_json()
    child = last["prompts"].pop(1)
    last["active"] = [last["prompts"][1]["id"]]
    (seed,) = family([first, last])
    assert seed.children[0].id == child["id"] and not seed.children[0].alive
    assert seed.children[0].children[0].alive


def test_a_prompt_whose_parent_was_never_recorded_is_a_root() -> None:
    only = pool(6).to_json()
    del only["prompts"][1]
    only["active"] = [only["prompts"][1]["id"]]
    roots = family([only])
    assert len(roots) == 2 and roots[1].diff == [("same", roots[1].text)]


def test_no_pool_no_family() -> None:
    found: list[Member] = family([])
    assert found == []
