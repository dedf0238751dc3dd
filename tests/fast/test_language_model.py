"""The language-model reflector against a real HTTP server on this machine."""

import random
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from fst_jax.config import Config, FastSettings, RolloutSettings
from fst_jax.errors import ReflectionError
from fst_jax.fast import language_model
from fst_jax.fast.language_model import LanguageModelReflector
from fst_jax.fast.reflect import Job, Proposal
from fst_jax.tasks.task import Problem, Score
from tests.fast.endpoint import EDIT, RESET, Endpoint, chat, serving
from tests.fast.policy import question, rollout

KEY = "sk-secret-123"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as endpoint:
        yield endpoint


def seen(question: str, text: str, reward: float) -> Any:
    score = Score(reward, f"Feedback on {text}", "kind")
    return rollout(Problem(question, question, "gold"), "Answer.", text, score)


JOB = Job("Answer.", [seen("What is 1?", "one", 0.0), seen("What is 2?", "two", 1.0)])


def words(text: str) -> int:
    return len(text.split())


def reflector(pauses: list[float], replies: Path | None = None, **changes: Any) -> Any:
    """A reflector that notes its pauses instead of taking them."""
    config = Config(fast=FastSettings(**({"lm_api_key_env": "TEST_KEY"} | changes)))
    return LanguageModelReflector(config, words, question, replies, sleep=pauses.append)


def ask(endpoint: Endpoint, jobs: int = 1, **changes: Any) -> tuple[list[Proposal], list[float]]:
    """Proposals and the pauses that were taken between requests."""
    pauses: list[float] = []
    asked = reflector(pauses, **({"lm_url": endpoint.url} | changes))
    return asked.propose([JOB] * jobs, random.Random(0)), pauses


def test_a_good_answer(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    [proposal], pauses = ask(endpoint, lm_model="some-model", lm_max_tokens=99)
    assert proposal == Proposal("Answer.\nUse a box.", None, None, False, 1, 11, 7) and not pauses
    [(body, headers)] = endpoint.requests
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"]) == ("some-model", 99)
    assert headers["Authorization"] == f"Bearer {KEY}"
    [message] = body["messages"]
    assert message["role"] == "user"
    for part in ("Answer.", "What is 1?", "one", "Feedback on one", "score 0", "score 1"):
        assert part in message["content"]


def test_an_echo_of_the_request_is_no_prompt(endpoint: Endpoint) -> None:
    endpoint.replies = [(200, {}, chat("```\nThe edited prompt\n```"))]
    [proposal], _ = ask(endpoint)
    assert (proposal.text, proposal.refusal) == ("", "no fenced prompt")


def test_without_a_key_none_is_sent(endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    ask(endpoint)
    assert "Authorization" not in endpoint.requests[0][1]


def test_jobs_are_asked_side_by_side_and_each_with_a_seed(endpoint: Endpoint) -> None:
    endpoint.replies = [(200, {}, 0.3)]
    proposals, _ = ask(endpoint, jobs=4)
    assert [proposal.text for proposal in proposals] == ["Answer.\nUse a box."] * 4
    assert endpoint.most_in_flight == 4
    seeds = {body["seed"] for body, _ in endpoint.requests}
    assert len(seeds) == 4
    ask(endpoint, jobs=4)
    assert {body["seed"] for body, _ in endpoint.requests} == seeds


def test_too_many_requests_waits_as_long_as_asked(endpoint: Endpoint) -> None:
    endpoint.replies = [
        (429, {"Retry-After": "7"}, {"error": {"message": "slow down"}}),
        (429, {"Retry-After": "100000"}, b""),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""),
        (200, {}, chat(EDIT)),
    ]
    [proposal], pauses = ask(endpoint)
    assert proposal.text and proposal.calls == 4
    assert pauses == [7.0, language_model.LONGEST_PAUSE_S, 4.0]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((408, {}, b""), "reflector busy"),
        ((429, {}, b""), "reflector busy"),
        ((500, {}, b"<html>oops</html>"), "server error"),
        ((503, {}, b""), "server error"),
        (RESET, "connection lost"),
        ((200, {}, b""), "no chat completion"),
        ((200, {}, b'{"choices": [{"mess'), "no chat completion"),
        ((200, {}, b"[" * 100_000), "no chat completion"),
        ((200, {}, b"\xff\xfe"), "no chat completion"),
        ((200, {}, {"choices": []}), "no chat completion"),
        ((200, {}, {"object": "error"}), "no chat completion"),
        ((200, {}, [1]), "no chat completion"),
        ((200, {}, {"choices": [{"message": {"content": 3}}]}), "no chat completion"),
        ((200, {}, chat(EDIT) | {"usage": {"prompt_tokens": "many"}}), "no chat completion"),
        ((200, {}, b'{"choices": [{"message": {}}], "usage": {"prompt_tokens": 1e999}}'),
         "no chat completion"),
        ((200, {"content-encoding": "gzip"}, b"not gzip"), "connection lost"),
        ((200, {}, 0.5), "reflector too slow"),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again_and_then_given_up(endpoint: Endpoint, reply, reason) -> None:
    endpoint.replies = [reply, (200, {}, chat(EDIT))]
    [proposal], pauses = ask(endpoint, lm_timeout_s=0.2)
    assert proposal.text and proposal.calls == 2 and pauses == [1.0]
    endpoint.replies = [reply]
    [proposal], pauses = ask(endpoint, lm_timeout_s=0.2)
    assert proposal.refusal == reason and proposal.calls == 5 and not proposal.mendable
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert endpoint.url in str(proposal.error) and "asked 5 times" in str(proposal.error)


def test_an_answer_that_trickles_is_given_up(endpoint: Endpoint, monkeypatch) -> None:
    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(40):
                    self.wfile.write(b" ")
                    time.sleep(0.05)
            except OSError:
                pass

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(language_model, "ATTEMPTS", 1)
    endpoint.server.RequestHandlerClass = Slow
    began = time.monotonic()
    [proposal], _ = ask(endpoint, lm_timeout_s=0.3)
    assert "no whole answer in 0.3 s" in str(proposal.error)
    assert time.monotonic() - began < 1.5


def test_where_nobody_ever_answered_the_address_is_wrong(endpoint: Endpoint, tmp_path) -> None:
    nowhere = "http://127.0.0.1:9/v1"
    [proposal], pauses = ask(endpoint, lm_url=nowhere)
    assert "cannot be reached" in str(proposal.error) and "set fast.lm_url" in str(proposal.error)
    assert proposal.refusal == "reflector unreachable" and len(pauses) == 4
    assert proposal.mendable
    # One that was there before, in this process or an earlier one, may come back.
    kept = tmp_path / "reflections.jsonl"
    asked = reflector([], kept, lm_url=endpoint.url)
    assert asked.propose([JOB], random.Random(0))[0].text
    for known in (asked, reflector([], kept, lm_url=nowhere)):
        known.url = f"{nowhere}/chat/completions"
        [proposal] = known.propose([JOB], random.Random(1))
        assert proposal.refusal == "reflector unreachable" and not proposal.mendable


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://host/v1", "http://"])
def test_an_address_that_is_none(endpoint: Endpoint, url: str) -> None:
    [proposal], _ = ask(endpoint, lm_url=url)
    assert "fast.lm_url" in str(proposal.error) and proposal.calls == 1 and proposal.mendable


def test_the_policy_may_reflect_on_itself(endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.setenv("POLICY_KEY", KEY)
    server = endpoint.url.removesuffix("/v1")
    rollout = RolloutSettings(url=f"{server}/, http://other", api_key_env="POLICY_KEY")
    config = Config(rollout=rollout, fast=FastSettings(lm_url=None))
    [proposal] = LanguageModelReflector(config, words, question).propose([JOB], random.Random(0))
    assert proposal.text
    [(body, headers)] = endpoint.requests
    assert body["path"] == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"


def test_kept_replies_are_not_asked_for_again(endpoint: Endpoint, tmp_path) -> None:
    kept = tmp_path / "reflections.jsonl"
    endpoint.replies = [(503, {}, b""), (200, {}, chat(EDIT)), (200, {}, chat("no prompt"))]
    first = reflector([], kept, lm_url=endpoint.url).propose([JOB] * 3, random.Random(0))
    assert len(endpoint.requests) == 4
    endpoint.replies = [(401, {}, b"")]
    again = reflector([], kept, lm_url=endpoint.url).propose([JOB] * 3, random.Random(0))
    assert again == first and len(endpoint.requests) == 4
    assert sorted(proposal.calls for proposal in again) == [1, 1, 2]
    # What failed is asked again.
    asked = reflector([], kept, lm_url=endpoint.url)
    assert asked.propose([JOB], random.Random(7))[0].refusal == "request refused"
    endpoint.replies = [(200, {}, chat(EDIT))]
    assert asked.propose([JOB], random.Random(7))[0].text


def test_a_refusal_is_final_and_hides_the_key(endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    for status, body, setting in (
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, "variable TEST_KEY"),
        (402, {"error": "no credit"}, "variable TEST_KEY"),
        (400, {"message": "context too long"}, "lm_examples_tokens"),
        (404, {"detail": "no such model"}, "fast.lm_model"),
        (302, b"moved", "fast.lm_url"),
    ):
        endpoint.replies = [(status, {"location": "http://127.0.0.1:9/"}, body)]
        [proposal], pauses = ask(endpoint)
        assert proposal.refusal == "request refused" and proposal.calls == 1 and not pauses
        assert f"answers {status}" in str(proposal.error) and KEY not in str(proposal.error)
        assert proposal.mendable and setting in str(proposal.error)
    endpoint.replies = [(400, {}, {"error": {"message": "context too long"}})]
    assert "context too long" in str(ask(endpoint)[0][0].error)


def test_a_key_that_cannot_be_sent_is_not_shown(endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.setenv("TEST_KEY", f"{KEY}\n")
    ask(endpoint)
    assert endpoint.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    for bad in (f"{KEY}\nX: y", f"{KEY}é"):
        monkeypatch.setenv("TEST_KEY", bad)
        with pytest.raises(ReflectionError, match="TEST_KEY") as caught:
            ask(endpoint)
        assert KEY not in str(caught.value)


def test_an_answer_without_end_is_refused(endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.setattr(language_model, "LONGEST_BODY", 1000)
    endpoint.replies = [(200, {}, b" " * 5000)]
    [proposal], _ = ask(endpoint)
    assert "more than 1000 bytes" in str(proposal.error) and proposal.calls == 1


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        (chat(EDIT, finish="length"), "truncated"),
        (chat(None), "empty answer"),
        (chat("<think>a box? ```\nNo.\n```"), "only thinking"),
        (chat("Use a box."), "no fenced prompt"),
    ],
)
def test_what_is_no_whole_prompt_is_refused(endpoint: Endpoint, reply, refusal) -> None:
    reply["choices"][0]["message"]["reasoning_content"] = EDIT  # is no answer
    endpoint.replies = [(200, {}, reply)]
    [proposal], _ = ask(endpoint)
    assert (proposal.text, proposal.refusal, proposal.error) == ("", refusal, None)
    assert proposal.prompt_tokens == 11


def test_half_a_character_is_replaced(endpoint: Endpoint) -> None:
    body = b'{"choices": [{"message": {"content": "```\\nA \\ud800 box.\\n```"}}]}'
    endpoint.replies = [(200, {}, body.replace(b'"}}', b'"}, "finish_reason": "stop"}'))]
    assert ask(endpoint)[0][0].text == "A ? box."


def test_costs_may_be_missing(endpoint: Endpoint) -> None:
    endpoint.replies = [(200, {}, chat(EDIT, usage=None))]
    [proposal], _ = ask(endpoint)
    assert proposal.text and (proposal.prompt_tokens, proposal.completion_tokens) == (0, 0)


def test_a_request_may_have_other_fields(endpoint: Endpoint, tmp_path) -> None:
    options = {"temperature": 0.7, "max_tokens": None, "max_completion_tokens": 50, "seed": None}
    kept = tmp_path / "reflections.jsonl"
    asked = reflector([], kept, lm_url=endpoint.url, lm_options=options)
    assert all(proposal.text for proposal in asked.propose([JOB] * 2, random.Random(0)))
    for body, _ in endpoint.requests:
        assert body.keys() == {
            *("model", "messages", "temperature", "max_completion_tokens", "path")
        }
    asked.propose([JOB] * 2, random.Random(0))
    assert len(endpoint.requests) == 2  # known by their seeds all the same
    reflector([], kept, lm_url=endpoint.url).propose([JOB] * 2, random.Random(0))
    assert len(endpoint.requests) == 4
