"""Texts of growing answers: whatever the pieces they come in, they add up to the whole."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.models.folder import load_tokenizer, resolve
from fst_jax.rollout.engine import Request
from fst_jax.rollout.server.answers import Transcript, text_of
from fst_jax.rollout.server.questions import Prompt
from fst_jax.rollout.server.service import Answer, Finish
from tests.rollout.served import ROOT

REQUEST = Request((1,), 1, 8, 1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve("fst-tiny"))


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """A byte-level one, whose tokens may end within a character."""
    folder = ROOT / "models/SmolLM2-135M-Instruct"
    if not folder.exists():
        pytest.skip("`make models` has not been run")
    return load_tokenizer(folder)


def read_in_pieces(tokenizer, prompt, ids, cuts):
    """The text after each piece, and the whole one at the end."""
    answer, transcript, seen = Answer(), Transcript(tokenizer, prompt), []
    for end in cuts:
        answer.ids = ids[:end]
        seen.append(transcript.read(answer))
    answer.ids, answer.finish = ids, Finish("length")
    return seen, transcript.read(answer)


@given(st.lists(st.integers(0, 195), min_size=1, max_size=40), st.data())
def test_every_reading_is_a_beginning_of_the_whole(tokenizer, ids, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=len(ids))))
    seen, whole = read_in_pieces(tokenizer, Prompt(REQUEST), ids, cuts)
    assert whole == tokenizer.decode(ids, skip_special_tokens=True)
    for before, after in pairwise([*seen, whole]):
        assert after.startswith(before)


def test_half_a_character_waits_for_its_other_half(bytes_tokenizer):
    ids = bytes_tokenizer.encode("a🪐b")
    seen, whole = read_in_pieces(bytes_tokenizer, Prompt(REQUEST), ids, range(1, len(ids)))
    assert whole == "a🪐b"
    assert set(seen) == {"a", "a🪐"} or set(seen) == {"a"}


def test_new_tokens_alone_are_decoded(bytes_tokenizer):
    decoded = []

    class Counting:
        def decode(self, ids, **options):
            decoded.append(len(ids))
            return bytes_tokenizer.decode(ids, **options)

    ids = bytes_tokenizer.encode("the quick brown fox jumps over the lazy dog " * 20)
    seen, whole = read_in_pieces(Counting(), Prompt(REQUEST), ids, range(1, len(ids)))
    assert whole.startswith(seen[-1])
    assert max(decoded[:-1]) <= 2 < len(ids)


def test_what_may_begin_a_stop_text_waits(bytes_tokenizer):
    prompt = Prompt(REQUEST, stop=("\n\nEnd",))
    answer = Answer(ids=bytes_tokenizer.encode("so\n\nE"))
    transcript = Transcript(bytes_tokenizer, prompt)
    assert transcript.read(answer) == "so"
    answer.ids = bytes_tokenizer.encode("so\n\nEnd")
    answer.finish = Finish("stop", matched="\n\nEnd")
    assert transcript.read(answer) == "so"
    answer.ids = bytes_tokenizer.encode("so\n\nEven")
    answer.finish = Finish("length")
    assert transcript.read(answer) == text_of(bytes_tokenizer, prompt, answer) == "so\n\nEven"
