"""Supervised warm-up: it learns, it keeps chats apart, it says what is wrong with a file."""

import json

import numpy as np
import pytest

from fst_jax.errors import TaskError, UserError
from fst_jax.models.folder import load_tokenizer
from fst_jax.models.huggingface import load_model
from fst_jax.rollout.chat import Chat
from fst_jax.settings import load
from fst_jax.sft import fine_tune, read_chats, sample, shuffled
from tests.helpers import tiny_model_folder


def _chats(path, count=40):
    chats = [
        {"messages": [{"role": "user", "content": f"say {i % 4}"},
                      {"role": "assistant", "content": f"number {i % 4}"}]}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, chats)))
    return path


@pytest.fixture
def arguments(tmp_path):
    model = tiny_model_folder(tmp_path / "model")
    data = _chats(tmp_path / "chats.jsonl")
    return [
        "--config", "configs/ci_tiny.yaml", "--model.path", str(model), "--sft.data", str(data),
        "--output", str(tmp_path / "runs"), "--name", "warm", "--sft.updates", "30",
        "--sft.batch_size", "8", "--sft.learning_rate", "0.01", "--sft.warmup_steps", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("optimizer, rate", [("adamw", "0.01"), ("muon", "0.02")])
def test_learns_and_leaves_a_model(arguments, tmp_path, optimizer, rate):
    config, _ = load(
        [*arguments, "--sft.optimizer", optimizer, "--sft.learning_rate", rate], "sft", ""
    )
    folder = fine_tune(config)
    lines = [json.loads(line) for line in (tmp_path / "runs/warm/metrics.jsonl").open()]
    assert lines[-1]["step"] == 30
    assert lines[-1]["held_out_loss"] < 0.5 * lines[0]["held_out_loss"]
    trained, base = load_model(folder), load_model(config.model.path)
    assert not np.allclose(trained.embedding[...], base.embedding[...])
    assert load_tokenizer(folder).chat_template


def test_a_sample_learns_the_last_message_and_its_end(tmp_path):
    folder = tiny_model_folder(tmp_path / "model")
    chat = Chat(load_tokenizer(folder))
    told = [{"role": "user", "content": "say 1"}, {"role": "assistant", "content": "number 1"}]
    row = sample(chat, told)
    assert list(row.context_ids) == chat.encode(told[:1])
    assert row.ids[-1] == chat.tokenizer.eos_token_id
    assert chat.decode(row.ids.tolist()) == "number 1"
    given = sample(chat, told, given=2)
    assert [*given.context_ids, *given.ids] == [*row.context_ids, *row.ids]
    assert len(given.ids) == len(row.ids) - 2


def test_every_pass_shows_every_sample_once():
    batches = shuffled(list(range(10)), 4, seed=0)
    seen = [item for _ in range(5) for item in next(batches)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", '{"messages": []}', '{"messages": [{"role": "assistant", "content": "a"}]}',
     '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
     '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 1}]}'],
)  # fmt: skip
def test_a_line_that_is_no_chat_is_named(tmp_path, line):
    path = _chats(tmp_path / "chats.jsonl", 2)
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(TaskError, match=r"chats\.jsonl:3: not a chat"):
        read_chats(path)


@pytest.mark.parametrize("extra", [[], ["--sft.data", "missing.jsonl"]])
def test_missing_data_is_one_message(arguments, extra, tmp_path):
    at = arguments.index("--sft.data")
    config, _ = load([*arguments[:at], *arguments[at + 2 :], *extra], "sft", "")
    with pytest.raises(UserError, match=r"sft\.data"):
        fine_tune(config)
    assert not (tmp_path / "runs").exists()


def test_a_chat_longer_than_the_model_is_named(arguments, tmp_path):
    long = {"messages": [{"role": "user", "content": "x" * 2000},
                         {"role": "assistant", "content": "y"}]}  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps(long)] * 2))
    config, _ = load(arguments, "sft", "")
    with pytest.raises(UserError, match=r"chats\.jsonl:1: the chat takes"):
        fine_tune(config)
