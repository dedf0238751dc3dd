"""Contexts of a task in a model's chat format."""

from typing import Any

import pytest

from fst_jax.errors import ConfigError, TaskError
from fst_jax.models.folder import load_tokenizer
from fst_jax.rollout.chat import Chat
from fst_jax.rollout.exam import Exam
from fst_jax.tasks.task import Problem
from tests.helpers import Echo, tiny_model_folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat(load_tokenizer(tiny_model_folder(tmp_path_factory.mktemp("model"))))


def problem(words: int) -> Problem:
    return Problem("p", "word " * words, "answer")


def test_a_context_is_the_chat_under_the_prompt(chat: Chat) -> None:
    exam = Exam(Echo(), chat, 500, 0)
    text = chat.tokenizer.decode(exam.context(problem(2), "Be brief."))
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nword word <|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_long_contexts_are_refused_and_foreseen(chat: Chat) -> None:
    length = len(Exam(Echo(), chat, 10_000, 0).context(problem(9), "Answer."))
    assert Exam(Echo(), chat, length, 0).fits(problem(9))
    assert not Exam(Echo(), chat, length, 0).fits(problem(10))
    with pytest.raises(ConfigError, match="max_prompt_tokens"):
        Exam(Echo(), chat, length - 1, 0).context(problem(9), "Answer.")
    roomy = Exam(Echo(), chat, length + 60, longest_prompt=50)
    assert roomy.fits(problem(9))
    longest = chat.tokenizer.decode(chat.tokenizer.encode("word " * 80)[:50])
    roomy.context(problem(9), longest)  # what fits() promised
    assert not Exam(Echo(), chat, length + 30, longest_prompt=50).fits(problem(9))


@pytest.mark.parametrize("messages", ["text", None, [], [{"role": "user", "text": "q"}], ["q"]])
def test_what_is_no_conversation_is_refused(chat: Chat, messages: Any) -> None:
    task = Echo()
    task.render = lambda problem: messages  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="list of messages"):
        Exam(task, chat, 500, 0).context(problem(1), "Answer.")


def test_the_templates_own_system_message_is_foreseen(chat: Chat, monkeypatch) -> None:
    """It stands where there is no prompt, as SmolLM2's and Qwen2.5's do."""
    assert chat.default_prompt_tokens == 0
    own = (
        "{% if messages[0].role != 'system' %}"
        "<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    )
    monkeypatch.setattr(chat.tokenizer, "chat_template", own + chat.tokenizer.chat_template)
    monkeypatch.delitem(chat.__dict__, "default_prompt_tokens")
    exam = Exam(Echo(), chat, 500, 0)
    longest = max(len(exam.context(problem(9), prompt)) for prompt in ("", Echo.seed_prompt))
    assert chat.default_prompt_tokens == chat.count("Be helpful.")
    assert not Exam(Echo(), chat, longest - 1, 0).fits(problem(9))
    assert Exam(Echo(), chat, longest + 4, 0).fits(problem(9))
    monkeypatch.delitem(chat.__dict__, "default_prompt_tokens")


def test_a_problem_is_shown_as_it_is_asked(chat: Chat) -> None:
    assert Exam(Echo(), chat, 500, 0).shown(problem(2)).strip() == "word word"
