"""The corpus obeys its own system prompts, and habit decides where they are silent."""

import numpy as np
import pytest

from fst_jax.models.folder import load_tokenizer
from fst_jax.rollout.chat import Chat
from fst_jax.sft import sample
from fst_jax.small_world import corpus
from fst_jax.small_world.answers import read
from fst_jax.small_world.base import MAX_TOKENS
from fst_jax.small_world.instructions import FORMATS, HELD_OUT, STRATEGIES, TRAINED
from fst_jax.small_world.questions import KINDS, Kind
from fst_jax.small_world.vocabulary import write_tokenizer

KIND_OF = {sentence: kind for kind, sentences in TRAINED.items() for sentence in sentences}
OF_QUESTION = {"graph": KINDS["star_graph"], "x": KINDS["code_output"]}  # by its first word


def _documents(draw, count=2000):
    rng = np.random.default_rng(0)
    return [draw(rng) for _ in range(count)]


def _kind(document) -> Kind:
    return OF_QUESTION.get(document.question.split()[0], KINDS["two_hop"])


def _takes_steps(document) -> bool:
    return _kind(document).takes_steps(read(document.answer).steps)


def _asked(system: str) -> list[str]:
    """The kinds of the sentences of a prompt, in order."""
    return [KIND_OF[sentence.strip() + " ."] for sentence in system.split(" .") if sentence.strip()]


@pytest.mark.parametrize("draw", [corpus.document, corpus.single_instruction])
def test_answers_do_what_the_prompt_asks(draw):
    obeyed = 0
    for document in _documents(draw):
        answer, kinds = read(document.answer), _asked(document.system)
        good = _kind(document).good
        formats = [kind for kind in kinds if kind in FORMATS]
        strategies = [k for k in kinds if k in (good, "direct", "forward")]
        if formats:
            assert answer.format == formats[-1]
        if strategies:
            assert _takes_steps(document) == (strategies[-1] == good)
        obeyed += bool(formats or strategies)
    assert obeyed > 1000


def test_habit_is_poor_and_plain_where_the_prompt_is_silent():
    silent = [d for d in _documents(corpus.document, 8000) if not d.system or
              set(_asked(d.system)) == {"remark"}]  # fmt: skip
    answers = [read(document.answer) for document in silent]
    assert len(answers) > 500
    assert 0.005 < np.mean([_takes_steps(document) for document in silent]) < 0.03
    assert 0.6 < np.mean([answer.format == "plain" for answer in answers]) < 0.8


def test_no_held_out_wording_is_ever_shown():
    shown = {d.system for d in _documents(corpus.document)}
    for kind in (*STRATEGIES, *FORMATS):
        for sentence in HELD_OUT[kind]:
            assert not any(sentence in system for system in shown)


def test_chains_tell_the_path_in_the_direction_that_is_given(tmp_path):
    write_tokenizer(tmp_path, MAX_TOKENS)
    chat = Chat(load_tokenizer(tmp_path))
    for document in _documents(corpus.chain, 50):
        direction, *told = document.answer.split()
        source, goal = document.question.split()[-3], document.question.split()[-1]
        ends = [source, goal] if direction == "path" else [goal, source]
        assert [told[0], told[-1]] == ends
        messages = [{"role": "user", "content": document.question},
                    {"role": "assistant", "content": document.answer}]  # fmt: skip
        row = sample(chat, messages, document.given)
        assert chat.decode(row.ids.tolist()) == " ".join(told)  # the direction is given


def test_every_document_fits_the_model(tmp_path):
    write_tokenizer(tmp_path, MAX_TOKENS)
    tokenizer = load_tokenizer(tmp_path)
    for draw in (corpus.document, corpus.single_instruction, corpus.chain, corpus.look_up):
        for document in _documents(draw, 300):
            text = f"{document.system} {document.question} {document.answer}"
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids
            assert len(ids) + 4 <= MAX_TOKENS
