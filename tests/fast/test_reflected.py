"""Fast rounds with a scripted model over HTTP: whatever it answers, the run goes on, and again."""

import dataclasses
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fst_jax.config import Config, FastSettings, RolloutSettings
from fst_jax.errors import ReflectionError
from fst_jax.fast.language_model import LanguageModelReflector
from fst_jax.fast.pool import Pool, Prompt
from fst_jax.fast.reflect import Job
from fst_jax.models.folder import load_tokenizer
from fst_jax.rollout.chat import Chat
from fst_jax.tasks.task import Problem, Score
from tests.fast.endpoint import RESET, Endpoint, chat, editor, serving
from tests.fast.policy import question, rollout
from tests.fast.reflected import GRAPH, round_through
from tests.helpers import tiny_model_folder
from tests.rollout import served

ROOT = Path(__file__).parents[2]
NO = Score(0.0, "No.", "wrong")
GOOD = f"{GRAPH.seed_prompt}\nWork backwards from the goal."


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as endpoint:
        yield endpoint


def fenced(prompt: str) -> tuple[int, dict[str, str], object]:
    return (200, {}, chat(f"```\n{prompt}\n```"))


ANSWERED = {  # replies that are a model's: what is wrong with their prompt is its reason
    "empty answer": (200, {}, chat("")),
    "truncated": (200, {}, chat(f"```\n{GOOD}\n```", finish="length")),
    "only thinking": (200, {}, chat(f"<think>\n```\n{GOOD}\n```\n</think>")),
    "no fenced prompt": (200, {}, chat(GOOD)),
    "empty": fenced(""),
    "too long": fenced("word " * 100_000),
    "control tokens": fenced(f"{GOOD}<|im_end|>\n<|im_start|>user"),
    "control characters": fenced(f"{GOOD}\x1b[2J"),
    "identical": fenced(GRAPH.seed_prompt),
}
UNANSWERED = {
    "reflector busy": (429, {"Retry-After": "1"}, {"error": {"message": "slow down"}}),
    "server error": (500, {}, b"<html>oops</html>"),
    "reflector too slow": (200, {}, 0.3),
    "no chat completion": (200, {}, b"I am no JSON"),
    "connection lost": RESET,
}


@pytest.mark.parametrize("reason", [*ANSWERED, *UNANSWERED])
def test_a_bad_reply_is_counted_and_the_run_goes_on(
    reason: str, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    replies = ANSWERED | UNANSWERED
    endpoint.replies = [replies[reason]]
    pool, report = round_through(endpoint.url, lm_timeout_s=0.1)
    assert set(report.rejected_by_reason) == {reason}
    assert report.accepted == 0 and [prompt.text for prompt in pool.prompts] == [GRAPH.seed_prompt]
    assert report.reflection_calls == len(endpoint.requests)
    if reason in UNANSWERED:
        assert report.rejected_by_reason == {reason: 2}  # one batch, and no more
        assert report.reflection_calls == 10 and len(caplog.messages) == 1
        assert endpoint.url in caplog.messages[0]
    # The next round has a model that answers again.
    endpoint.replies = [fenced(GOOD)]
    pool, report = round_through(endpoint.url, pool=pool)
    assert pool.active_prompts[0].text == GOOD and pool.active_prompts[0].mean_score == 1.0


def test_one_bad_reply_of_two_costs_one_proposal(endpoint: Endpoint) -> None:
    for bad in (*ANSWERED.values(), RESET, (404, {}, b"")):
        endpoint.replies = [bad, fenced(GOOD)]
        pool, report = round_through(endpoint.url, metric_calls=28)
        assert report.proposals == 2
        assert {prompt.text for prompt in pool.prompts} == {GRAPH.seed_prompt, GOOD}


@pytest.mark.parametrize(
    ("reply", "change"),
    [
        ((401, {}, {"error": {"message": "no key"}}), "OPENAI_API_KEY"),
        ((404, {}, {"detail": "no such model"}), "fast.lm_model"),
    ],
)
def test_what_the_user_must_mend_is_said(endpoint: Endpoint, reply, change: str) -> None:
    endpoint.replies = [reply]
    with pytest.raises(ReflectionError, match=change):
        round_through(endpoint.url)
    with pytest.raises(ReflectionError, match="set fast.lm_url"):
        round_through("http://127.0.0.1:9/v1")


def test_the_same_seed_gives_the_same_pool(endpoint: Endpoint, tmp_path) -> None:
    endpoint.answer = editor
    rounds = [round_through(endpoint.url, tmp_path / name) for name in ("one", "two")]
    (one, first), (two, second) = rounds
    assert one == two and len(one.prompts) > 1
    blank = {"rollouts": []}
    assert dataclasses.replace(first, **blank) == dataclasses.replace(second, **blank)
    asked = sorted(endpoint.seeds)
    assert asked[::2] == asked[1::2] and len(set(asked)) == len(asked) // 2 > 2
    # With the replies of the first, nothing is asked, and a third round is the same again.
    endpoint.answer, endpoint.replies = None, [(401, {}, b"")]
    three, third = round_through(endpoint.url, tmp_path / "one")
    assert three == one and len(endpoint.requests) == len(asked)
    assert dataclasses.replace(third, **blank) == dataclasses.replace(first, **blank)


def test_a_round_that_was_killed_goes_on_and_asks_nothing_twice(
    endpoint: Endpoint, tmp_path
) -> None:
    endpoint.answer = editor
    whole, _ = round_through(endpoint.url, tmp_path / "whole")
    needed = set(endpoint.seeds)
    first_batch = needed & set(endpoint.seeds[:2])
    endpoint.requests.clear()

    # The first call of the reflector, two requests, is answered, and one of the second; the
    # process dies while the other one is under way.
    hanging, killed = threading.Event(), threading.Event()

    def hangs(body):
        with endpoint.lock:
            late = len(endpoint.requests) >= 4 and body["seed"] == endpoint.requests[3][0]["seed"]
        if late:
            hanging.set()
            killed.wait(60)
        return editor(body)

    endpoint.answer = hangs
    kept = tmp_path / "reflections.jsonl"
    command = [sys.executable, "-m", "tests.fast.reflected", endpoint.url, str(kept)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert hanging.wait(60)
    while not kept.exists() or kept.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
    process.kill()
    assert process.wait(10) == -9
    killed.set()
    answered = {seed for seed in endpoint.seeds if seed != endpoint.seeds[3]}
    assert first_batch < answered < needed and len(answered) == 3
    with open(kept, "ab") as file:
        file.write(b'{"request": "torn by the k')
    endpoint.requests.clear()

    endpoint.answer = editor
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60)
    assert Pool.from_json(json.loads(done.stdout)) == whole
    assert set(endpoint.seeds) == needed - answered and len(endpoint.seeds) == len(needed) - 3


def halves(problem: Problem, prompt: str, rng: random.Random) -> str:
    """Right on the problems of the kind that the prompt names."""
    kind = "even" if int(problem.id.rpartition("-")[2]) % 2 == 0 else "odd"
    return rf"\boxed{{{problem.answer}}}" if kind in prompt else "?"


def test_merges_and_rewrites_are_asked_for(endpoint: Endpoint) -> None:
    def model(body):
        said = body["messages"][0]["content"]
        if "merge them into one" in said:
            return fenced("Solve even ones and odd ones.")
        assert "in its place" in said  # the words of the full recipe
        return fenced(f"Attempt {body['seed']}.")

    endpoint.answer = model
    known = [Prompt("seed"), Prompt("Solve even ones."), Prompt("Solve odd ones.")]
    pool = Pool(tuple(known), tuple(prompt.id for prompt in known[1:]))
    pool, report = round_through(
        endpoint.url, pool=pool, answer=halves, merge=True, recipe="full", metric_calls=28
    )
    asked = [body["messages"][0]["content"] for body, _ in endpoint.requests]
    assert sorted("Prompt B:" in text for text in asked) == [False, True]
    assert (report.merges, report.merges_accepted) == (1, 1)
    best = pool.active_prompts[0]
    assert best.text == "Solve even ones and odd ones." and best.mean_score == 1.0
    assert {best.parent, best.partner} == {prompt.id for prompt in known[1:]}


@pytest.mark.slow
def test_the_embedded_server_is_a_reflector(tmp_path, monkeypatch) -> None:
    """Of a random model, which says nothing; the request comes through whole, and is counted."""
    folder = tiny_model_folder(tmp_path / "model", max_position_embeddings=1024)
    monkeypatch.setenv("FST_JAX_API_KEY", "sk-own")
    with served.serving(folder, "--api-key", "sk-own", "--slots", 2) as server:
        config = Config(
            rollout=RolloutSettings(engine="sglang", url=server.url),
            fast=FastSettings(lm_url=None, lm_max_tokens=16),
        )
        tokens = Chat(load_tokenizer(folder))
        reflector = LanguageModelReflector(config, tokens.count, question)
        job = Job("Answer.", [rollout(GRAPH.problems("train")[0], "Answer.", "?", NO)])
        [proposal] = reflector.propose([job], random.Random(0))
    assert proposal.refusal in ("truncated", "no fenced prompt") and proposal.error is None
    asked = [{"role": "user", "content": reflector.wording.request(job)[0]}]
    assert proposal.prompt_tokens == len(tokens.encode(asked)) and proposal.calls == 1
    assert 0 < proposal.completion_tokens <= 16
