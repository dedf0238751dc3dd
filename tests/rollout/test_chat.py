"""The evolved prompt enters as the system message; only ids travel afterwards."""

import copy

import pytest

from fst_jax.errors import ModelError
from fst_jax.models.folder import load_tokenizer
from fst_jax.rollout.chat import Chat, with_prompt
from tests.helpers import tiny_model_folder

USER = {"role": "user", "content": "yes or no?"}
SYSTEM = {"role": "system", "content": "Answer."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


def test_with_prompt():
    assert with_prompt([USER], "") == [USER]
    assert with_prompt([SYSTEM, USER], "") == [SYSTEM, USER]
    assert with_prompt([USER], "Think.") == [{"role": "system", "content": "Think."}, USER]
    merged = {"role": "system", "content": "Think.\n\nAnswer."}
    given = [SYSTEM, USER]
    assert with_prompt(given, "Think.") == [merged, USER]
    assert given == [SYSTEM, USER] and SYSTEM["content"] == "Answer."
    # A system message that is not the first is a turn of the conversation.
    assert with_prompt([USER, SYSTEM], "Think.")[1:] == [USER, SYSTEM]
    assert with_prompt([], "Think.") == [{"role": "system", "content": "Think."}]


def test_encode_and_decode(tokenizer):
    chat = Chat(tokenizer)
    text = (
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nyes or no?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = chat.encode([USER], "Think.")
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert all(type(i) is int for i in ids)
    answer = [*tokenizer.encode("yes", add_special_tokens=False), *chat.stop_ids]
    assert chat.decode(answer) == "yes"
    assert chat.count("yes") == len(answer) - len(chat.stop_ids)
    assert chat.count("") == 0


def test_template_arguments_reach_the_template(tokenizer):
    plain = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ mode }}:{{ messages[0]['content'] }}"
        chat = Chat(tokenizer, {"mode": "fast"})
        assert tokenizer.decode(chat.encode([USER])) == "fast:yes or no?"
    finally:
        tokenizer.chat_template = plain


def test_stop_ids_and_control_tokens(tokenizer):
    eos = tokenizer.eos_token_id
    assert Chat(tokenizer).stop_ids == (eos,)
    assert Chat(tokenizer, stop_ids=[eos, 0, 0]).stop_ids == tuple(sorted({0, eos}))
    assert Chat(tokenizer).control_tokens == ("<|endoftext|>", "<|im_end|>", "<|im_start|>")


def test_a_model_without_an_end_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "_special_tokens_map", {}, raising=False)
    monkeypatch.setattr(type(tokenizer), "eos_token_id", None, raising=False)
    with pytest.raises(ModelError, match="no end-of-sequence token: add eos_token"):
        Chat(tokenizer)
    assert Chat(tokenizer, stop_ids=[2]).stop_ids == (2,)


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no system role') }}"])
def test_a_template_that_cannot_be_rendered_is_named(tokenizer, template):
    broken = copy.copy(tokenizer)
    broken.chat_template = template
    with pytest.raises(ModelError, match="chat template cannot be rendered"):
        Chat(broken).encode([USER], "Think.")
