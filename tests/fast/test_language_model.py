"""The language-model reflector against a real HTTP server on this machine."""

import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fst_jax.config import FastSettings
from fst_jax.errors import ReflectionError
from fst_jax.fast import language_model
from fst_jax.fast.evolve import evolve
from fst_jax.fast.language_model import LanguageModelReflector, edited_prompt, instruction
from fst_jax.fast.pool import Pool
from fst_jax.fast.reflect import Job, Proposal, reflector_for
from fst_jax.fast.validate import Validator
from fst_jax.tasks.task import Problem, Score
from tests.fast.policy import Policy, obeys_strategy, rollout, star_graph

KEY = "sk-secret-123"
EDIT = "Diagnosis: no box.\n```\nAnswer.\nUse a box.\n```"


def chat(content: str | None, finish: str = "stop", usage: Any = (11, 7)) -> dict[str, Any]:
    tokens = dict(zip(("prompt_tokens", "completion_tokens"), usage or (), strict=False))
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish}
    return {"choices": [choice], "usage": tokens or None}


class Endpoint:
    """Plays a list of (status, headers, body or delay) and repeats the last one."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, dict[str, str], Any]] = [(200, {}, chat(EDIT))]
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.lock = threading.Lock()
        self.in_flight = self.most_in_flight = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with endpoint.lock:
                    endpoint.requests.append((body | {"path": self.path}, dict(self.headers)))
                    reply = endpoint.replies[0]
                    if len(endpoint.replies) > 1:
                        endpoint.replies.pop(0)
                    endpoint.in_flight += 1
                    endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
                status, headers, answer = reply
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = chat(EDIT)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client gave up
                with endpoint.lock:
                    endpoint.in_flight -= 1

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def seen(question: str, text: str, reward: float) -> Any:
    score = Score(reward, f"Feedback on {text}", "kind")
    return rollout(Problem(question, question, "gold"), "Answer.", text, score)


JOB = Job("Answer.", [seen("What is 1?", "one", 0.0), seen("What is 2?", "two", 1.0)])


def ask(endpoint: Endpoint, jobs: int = 1, **changes: Any) -> tuple[list[Proposal], list[float]]:
    """Proposals and the pauses that were taken between requests."""
    settings = FastSettings(**({"lm_url": endpoint.url, "lm_api_key_env": "TEST_KEY"} | changes))
    pauses: list[float] = []
    reflector = LanguageModelReflector(settings, sleep=pauses.append)
    return reflector.propose([JOB] * jobs, random.Random(0)), pauses


def test_a_good_answer(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    [proposal], pauses = ask(endpoint, lm_model="some-model", lm_max_tokens=99)
    assert proposal == Proposal("Answer.\nUse a box.", None, None, 1, 11, 7) and not pauses
    [(body, headers)] = endpoint.requests
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"]) == ("some-model", 99)
    assert headers["Authorization"] == f"Bearer {KEY}"
    [message] = body["messages"]
    assert message["role"] == "user"
    for part in ("Answer.", "What is 1?", "one", "Feedback on one", "score 0", "score 1"):
        assert part in message["content"]


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
    "reply",
    [
        (500, {}, b"<html>oops</html>"),
        (503, {}, b""),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, {"choices": []}),
        (200, {}, {"object": "error"}),
        (200, {}, [1]),
        (200, {}, {"choices": [{"message": {"content": 3}}]}),
        (200, {}, chat(EDIT) | {"usage": {"prompt_tokens": "many"}}),
        (200, {"content-encoding": "gzip"}, b"not gzip"),
        (200, {}, 0.5),
    ],
)
def test_what_may_pass_is_tried_again_and_then_given_up(endpoint: Endpoint, reply) -> None:
    endpoint.replies = [reply, (200, {}, chat(EDIT))]
    [proposal], pauses = ask(endpoint, lm_timeout_s=0.2)
    assert proposal.text and proposal.calls == 2 and pauses == [1.0]
    endpoint.replies = [reply]
    [proposal], pauses = ask(endpoint, lm_timeout_s=0.2)
    assert proposal.refusal == "reflector failed" and proposal.calls == 5
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


def test_nobody_listens() -> None:
    settings = FastSettings(lm_url="http://127.0.0.1:9/v1")
    [proposal] = LanguageModelReflector(settings, lambda s: None).propose([JOB], random.Random(0))
    assert "cannot be reached" in str(proposal.error) and proposal.calls == 5


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "", "ftp://host/v1", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    settings = FastSettings(lm_url=url)
    [proposal] = LanguageModelReflector(settings, lambda s: None).propose([JOB], random.Random(0))
    assert "fast.lm_url" in str(proposal.error) and proposal.calls == 1


def test_a_refusal_is_final_and_hides_the_key(endpoint: Endpoint, monkeypatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    for status, body in (
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        (400, {"message": "context too long"}),
        (404, {"detail": "no such model"}),
        (302, b"moved"),
    ):
        endpoint.replies = [(status, {"location": "http://127.0.0.1:9/"}, body)]
        [proposal], pauses = ask(endpoint)
        assert proposal.refusal == "reflector failed" and proposal.calls == 1 and not pauses
        assert f"answers {status}" in str(proposal.error) and KEY not in str(proposal.error)
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
        (chat("Thinking of ```\nAnswer."), "no fenced prompt"),
        (chat("Here it is:\n```\nAnswer."), "truncated"),
        (chat("<think>a box? ```\nNo.\n```"), "truncated"),
        (chat(None), "no fenced prompt"),
        (chat(None, finish="length"), "truncated"),
        (chat("Use a box."), "no fenced prompt"),
    ],
)
def test_what_is_no_whole_prompt_is_refused(endpoint: Endpoint, reply, refusal) -> None:
    endpoint.replies = [(200, {}, reply)]
    [proposal], _ = ask(endpoint)
    assert (proposal.text, proposal.refusal, proposal.error) == ("", refusal, None)
    assert proposal.prompt_tokens == 11


def test_costs_may_be_missing(endpoint: Endpoint) -> None:
    endpoint.replies = [(200, {}, chat(EDIT, usage=None))]
    [proposal], _ = ask(endpoint)
    assert proposal.text and (proposal.prompt_tokens, proposal.completion_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<think>\n```\nno\n```\n</think>\n```\nyes\n```", "yes"),
        ("I think no box.</think>```prompt\nyes\n```\n", "yes"),
        ("```\nfirst\n```\nBetter:\n```text\nlast\nline\n```", "last\nline"),
        ("````\nSay:\n```\ncode\n```\nso.\n````", "Say:\n```\ncode\n```\nso."),
        ("```\nclosed at once```", "closed at once"),
        ("  ```\n  indented\n  ```", "indented"),
        ("```\n```", ""),
        ("```\r\nyes\r\n```\r\n", "yes"),
    ],
)
def test_the_last_fenced_block_is_the_prompt(answer: str, text: str) -> None:
    assert edited_prompt(answer) == (text, None)


def test_the_instruction_is_budgeted_and_shows_the_worst_first() -> None:
    rollouts = [seen(f"question {i}", f"answer {i} " + "x" * 5000, i % 3 / 2) for i in range(60)]
    rollouts += [seen("question 0", "answer 0 " + "x" * 5000, 0.0)]  # the same again
    text = instruction(Job("Answer.", rollouts), prompt_words=300)
    assert len(text) < language_model.EXAMPLES_CHARACTERS + 2500
    assert text.count("answer 0 ") == 2  # in the answer and in its feedback
    assert text.index("score 0\n") < text.index("score 1\n")
    assert "about 300 words" in text
    fenced = instruction(Job("Use:\n```\ncode\n```", []), prompt_words=300)
    assert "````\nUse:\n```\ncode\n```\n````" in fenced
    braces = instruction(Job(r"Use \boxed{path} {0}", rollouts), prompt_words=300)
    assert r"Use \boxed{path} {0}" in braces


def test_a_round_through_the_endpoint(endpoint: Endpoint) -> None:
    graph = star_graph()
    anchors = [graph.problems("train")[i] for i in range(12)]
    better = f"```\n{graph.seed_prompt}\nWork backwards from the goal.\n```"
    endpoint.replies = [(503, {}, b""), (200, {}, chat(better)), (200, {}, chat("no idea"))]
    settings = FastSettings(
        population=2, metric_calls=80, minibatch=4, reflector="lm", lm_url=endpoint.url
    )
    validator = Validator(lambda text: len(text.split()), [], 100)
    reflector = reflector_for(settings, validator.count_tokens)
    assert isinstance(reflector, LanguageModelReflector)
    reflector._sleep = lambda seconds: None
    policy = Policy(graph, obeys_strategy)
    start = Pool.start(graph.seed_prompt, 2, 0)
    pool, report = evolve(start, anchors, policy, reflector, validator, settings, 0, 1)
    assert pool.active_prompts[0].origin == "lm" and pool.active_prompts[0].mean_score == 1.0
    assert report.reflection_calls == len(endpoint.requests) == report.proposals + 1
    assert report.reflection_completion_tokens == 7 * report.proposals
    assert set(report.rejected_by_reason) == {"no fenced prompt"}
