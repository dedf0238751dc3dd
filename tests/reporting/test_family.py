"""The family tree: every prompt once, below its parent, with an edit that makes its text."""

from hypothesis import given
from hypothesis import strategies as st

from fst_jax.reporting.family import Member, difference, family
from tests.reporting.synthetic import pool

texts = st.text(alphabet="ab .,\n", max_size=30)


@given(texts, texts)
def test_a_difference_makes_both_texts(old: str, new: str) -> None:
    pieces = difference(old, new)
    assert "".join(text for kind, text in pieces if kind != "removed") == new
    assert "".join(text for kind, text in pieces if kind != "added") == old


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
