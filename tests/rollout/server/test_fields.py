"""Every field that the server reads, sent once: it is honoured, or refused by its name."""

from typing import Any

import msgspec
import pytest

from fst_jax.rollout.server.questions import (
    ChatCompletion,
    Completions,
    Generate,
    SamplingParams,
    TextCompletion,
)

# Of each field a value, and whether it is taken; else the answer is 400 and names the field.
NUMBERS: dict[str, Any] = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 2, "stop": ["zz"],
    "stop_token_ids": [3], "ignore_eos": True, "skip_special_tokens": False,
}  # fmt: skip
PENALTIES: dict[str, Any] = {
    "frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.1,
    "logit_bias": {"3": 1.0},
}  # fmt: skip
SAMPLING = {name: (value, True) for name, value in NUMBERS.items()} | {
    "max_new_tokens": (3, True),
    "no_stop_trim": (True, True),
    "sampling_seed": (7, True),
    "spaces_between_special_tokens": (False, True),
    "stream_interval": (2, True),
    "min_new_tokens": (2, False),
    "stop_regex": ("a+", False),
    "json_schema": ("{}", False),
    "regex": ("a+", False),
    "ebnf": ("root ::= x", False),
    "structural_tag": ("{}", False),
    "custom_params": ({"a": 1}, False),
    "beam_width": (2, False),
    "watermark": (True, False),
    "choice": (["a", "b"], False),
    **{name: (value, False) for name, value in PENALTIES.items()},
}
GENERATE = {
    "text": ("the path", True),
    "input_ids": ([5, 6], True),
    "sampling_params": ({"max_new_tokens": 2}, True),
    "return_logprob": (True, True),
    "logprob_start_len": (-1, True),
    "return_text_in_logprobs": (True, True),
    "stream": (True, True),
    "rid": ("name", True),
    "top_logprobs_num": (2, False),
    "token_ids_logprob": ([1], False),
    "return_hidden_states": (True, False),
    "image_data": ("x.png", False),
    "audio_data": ("x.wav", False),
    "video_data": ("x.mp4", False),
    "lora_path": ("adapter", False),
    "custom_logit_processor": ("x", False),
    "session_params": ({"id": "1"}, False),
}
BOTH = {name: (value, True) for name, value in NUMBERS.items()} | {
    "model": ("first", True),
    "max_tokens": (3, True),
    "seed": (3, True),
    "stream": (True, True),
    "stream_options": ({"include_usage": True}, True),
    **{name: (value, False) for name, value in PENALTIES.items()},
    "response_format": ({"type": "json_object"}, False),
    "min_tokens": (2, False),
    "regex": ("a+", False),
    "ebnf": ("root ::= x", False),
    "stop_regex": ("a+", False),
    "lora_path": ("adapter", False),
}
TEXT = BOTH | {
    "prompt": ("the path", True),
    "logprobs": (0, True),
    "echo": (True, False),
    "suffix": ("x", False),
    "best_of": (2, False),
}
CHAT = BOTH | {
    "messages": ([{"role": "user", "content": [{"type": "text", "text": "yes"}]}], True),
    "max_completion_tokens": (3, True),
    "logprobs": (True, True),
    "top_logprobs": (2, False),
    "chat_template_kwargs": ({"enable_thinking": False}, True),
    "tools": ([{"type": "function", "function": {"name": "f"}}], False),
    "continue_final_message": (True, False),
}
ROUTES: dict[str, tuple[type, dict[str, tuple[Any, bool]], dict[str, Any]]] = {
    "/generate": (Generate, GENERATE, {"sampling_params": {"max_new_tokens": 2}}),
    "/v1/completions": (TextCompletion, TEXT, {"prompt": "yes", "max_tokens": 2}),
    "/v1/chat/completions": (
        ChatCompletion,
        CHAT,
        {"messages": [{"role": "user", "content": "yes"}], "max_tokens": 2},
    ),
}


def names(kind: type) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def test_no_field_is_missing_here():
    assert names(SamplingParams) == SAMPLING.keys()
    assert names(Completions) == BOTH.keys()
    for kind, table, _ in ROUTES.values():
        assert names(kind) == table.keys()


@pytest.mark.parametrize("route", ROUTES)
def test_every_field_is_honoured_or_refused(client, route):
    _, table, least = ROUTES[route]
    for name, (value, taken) in table.items():
        prompt = {} if route != "/generate" or name in ("text", "input_ids") else {"input_ids": [5]}
        response = client.post(route, json=least | prompt | {name: value})
        assert response.status_code == (200 if taken else 400), (name, response.text)
        assert taken or name in response.json()["error"]["message"]


@pytest.mark.parametrize("name", SAMPLING)
def test_every_sampling_parameter_is_honoured_or_refused(client, name):
    value, taken = SAMPLING[name]
    sampling = {"max_new_tokens": 2} | {name: value}
    response = client.post("/generate", json={"input_ids": [5], "sampling_params": sampling})
    assert response.status_code == (200 if taken else 400), response.text
    assert taken or name in response.json()["error"]["message"]


def test_neutral_values_are_taken(client):
    body = {"messages": [{"role": "user", "content": "yes"}], "max_tokens": 2}
    neutral = {"response_format": {"type": "text"}, "min_tokens": 0, "repetition_penalty": 1.0}
    assert client.post("/v1/chat/completions", json=body | neutral).status_code == 200
    none = client.post("/v1/chat/completions", json=body | {"max_completion_tokens": 0})
    assert none.status_code == 400 and "at least 1" in none.json()["error"]["message"]


def test_a_penalty_of_nothing_is_no_neutral_one(client):
    sampling = {"repetition_penalty": 0.0}
    response = client.post("/generate", json={"input_ids": [5], "sampling_params": sampling})
    assert response.status_code == 400
