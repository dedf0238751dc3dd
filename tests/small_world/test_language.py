"""The tokenizer, the sentences and the answers of the small world."""

import pytest

from fst_jax.models.folder import load_tokenizer
from fst_jax.rollout.chat import Chat
from fst_jax.small_world import instructions, questions
from fst_jax.small_world.answers import read
from fst_jax.small_world.vocabulary import SPECIAL, words, write_tokenizer


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 160)
    return Chat(load_tokenizer(folder))


def test_every_token_has_its_own_id_in_a_fixed_order(chat):
    vocabulary = chat.tokenizer.get_vocab()
    assert len(vocabulary) == len(SPECIAL) + len(words())
    assert [vocabulary[token] for token in SPECIAL] == list(range(len(SPECIAL)))


@pytest.mark.parametrize("kind", instructions.TRAINED)
def test_sentences_as_people_write_them_are_the_corpus_tokens(chat, kind):
    for sentence in (*instructions.TRAINED[kind], *instructions.HELD_OUT[kind]):
        written = instructions.as_prompt(sentence)
        assert written[0].isupper() and " ." not in written
        ids = chat.tokenizer.encode(written, add_special_tokens=False)
        assert chat.tokenizer.unk_token_id not in ids
        assert chat.decode(ids) == sentence


def test_held_out_wordings_are_new_but_their_words_are_not():
    trained = {s for kind in instructions.TRAINED.values() for s in kind}
    known = {word for sentence in trained for word in sentence.split()}
    held_out = {s for kind in instructions.HELD_OUT.values() for s in kind}
    assert not trained & held_out
    assert {word for sentence in held_out for word in sentence.split()} <= known


def test_kinds_have_the_same_names_everywhere():
    kinds = {*instructions.STRATEGIES, *instructions.FORMATS, "remark"}
    assert set(instructions.TRAINED) == set(instructions.HELD_OUT) == kinds
    for kind in questions.KINDS.values():
        assert {kind.good, kind.poor} <= set(instructions.STRATEGIES)
        assert kind.format in instructions.FORMATS


def test_an_empty_prompt_looks_like_no_prompt(chat):
    user = {"role": "user", "content": "where is amy"}
    assert chat.encode([user]) == chat.encode([{"role": "system", "content": ""}, user])


@pytest.mark.parametrize("format", instructions.FORMATS)
@pytest.mark.parametrize("steps", ["", "back 3 7 12", "1 reverse 2 8 4 ;"])
def test_reading_undoes_wrapping(format, steps):
    answer = read(f"{steps} {questions.wrap('12 7 3', format)}")
    assert (answer.steps, answer.format, answer.content) == (steps, format, "12 7 3")


@pytest.mark.parametrize("text", ["", "back 3 7", "[ 1 2", "[ 1 ] 2", "( 1 ]"])
def test_what_does_not_end_with_one_answer_has_none(text):
    assert read(text).format is None


def test_the_last_answer_counts():
    assert read("[ 1 ] [ 2 ]").content == "2"
