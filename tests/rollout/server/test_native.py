"""SGLang's routes, over real HTTP: what is generated, and how control works while it is."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flax import nnx

from fst_jax.models.folder import load_config, load_tokenizer
from fst_jax.models.huggingface import load_model
from tests.rollout.served import Served, wait_until
from tests.slow import tiny

PROMPT = [40, 50, 60, 70, 80]


def generate(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/generate", json={"input_ids": PROMPT, "return_logprob": True} | body)
    assert response.status_code == 200, response.text
    return response.json()


def params(**changes: Any) -> dict[str, Any]:
    return {"max_new_tokens": 10, "sampling_seed": 3, "ignore_eos": True} | changes


def long(**changes: Any) -> dict[str, Any]:
    return params(max_new_tokens=400) | changes


def exact(folder: Path, answer: dict[str, Any], temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities of an answer's tokens by the float64 model."""
    weights = tiny.weights(nnx.state(load_model(folder)))
    return tiny.logprobs(
        weights, load_config(folder), tuple(PROMPT), np.array(answer["output_ids"]), temperature
    )


def values(answer: dict[str, Any]) -> list[float]:
    entries = answer["meta_info"]["output_token_logprobs"]
    assert [token for _, token, _ in entries] == answer["output_ids"]
    return [logprob for logprob, _, _ in entries]


class Asking(threading.Thread):
    """A request under way; `answer` is its JSON."""

    def __init__(self, url: str, **body: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._body = url, {"input_ids": PROMPT, "return_logprob": True} | body
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        self.answer = httpx.post(f"{self._url}/generate", json=self._body, timeout=120).json()

    def result(self) -> Any:
        self.join(120)
        return self.answer


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_those_of_the_model_at_the_temperature(client, weights, temperature):
    answer = generate(client, sampling_params=params(temperature=temperature))
    np.testing.assert_allclose(
        values(answer), exact(weights / "first", answer, temperature), atol=1e-4
    )
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 10}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (5, 10)
    assert meta["weight_versions"] == [{"version": "default", "start": 0, "end": 10}]
    assert meta["e2e_latency"] > 0
    tokenizer = load_tokenizer(weights / "first")
    assert answer["text"] == tokenizer.decode(answer["output_ids"], skip_special_tokens=True)


def test_a_seed_gives_the_same_sample_and_none_another_one_each_time(client):
    first, again = (generate(client, sampling_params=params()) for _ in range(2))
    assert first["output_ids"] == again["output_ids"]
    assert again["meta_info"]["cached_tokens"] == len(PROMPT)
    free = [generate(client, sampling_params=params(sampling_seed=None)) for _ in range(3)]
    assert len({tuple(answer["output_ids"]) for answer in free}) == 3


def test_batches_and_several_samples(client):
    alone = generate(client, sampling_params=params())
    answers = generate(
        client,
        input_ids=[PROMPT, [9, 8, 7], PROMPT],
        sampling_params=[params(), params(max_new_tokens=3), params(n=2)],
        rid=["a", "b", "c"],
    )
    assert [answer["meta_info"]["id"] for answer in answers] == ["a", "b", "c", "c"]
    assert [len(answer["output_ids"]) for answer in answers] == [10, 3, 10, 10]
    assert answers[0]["output_ids"] == answers[2]["output_ids"] == alone["output_ids"]
    assert answers[3]["output_ids"] != alone["output_ids"]
    assert isinstance(generate(client, input_ids=[PROMPT], sampling_params=params()), list)


def test_text_in_and_what_ends_an_answer(client, weights):
    tokenizer = load_tokenizer(weights / "first")
    text = "the path from node"
    free = generate(client, input_ids=None, text=text, sampling_params=params(max_new_tokens=60))
    by_ids = generate(
        client, input_ids=tokenizer.encode(text), sampling_params=params(max_new_tokens=60)
    )
    assert free["output_ids"] == by_ids["output_ids"]
    ids = free["output_ids"]
    stop = next(i for i in range(5, 60) if ids[i] not in ids[:i] and ids[i] > 2)

    def ended(**changes: Any) -> dict[str, Any]:
        asked = params(max_new_tokens=60, ignore_eos=False, **changes)
        return generate(client, input_ids=None, text=text, sampling_params=asked)

    by_id = ended(stop_token_ids=[ids[stop]])
    if 2 not in ids[:stop]:
        assert by_id["output_ids"] == ids[: stop + 1]
        assert by_id["meta_info"]["finish_reason"] == {"type": "stop", "matched": ids[stop]}
        assert by_id["text"] == tokenizer.decode(ids[:stop], skip_special_tokens=True)
        kept = ended(stop_token_ids=[ids[stop]], no_stop_trim=True)
        assert kept["text"] == tokenizer.decode(ids[: stop + 1], skip_special_tokens=True)
    # A stop text of two tokens, so that it ends within the answer and not at its beginning.
    shown = tokenizer.decode(ids[: stop + 2])
    piece = tokenizer.decode(ids[stop : stop + 2])
    if "\N{REPLACEMENT CHARACTER}" not in piece and shown.find(piece) == len(shown) - len(piece):
        asked = params(max_new_tokens=60, stop=["never there", piece])
        by_text = generate(client, input_ids=None, text=text, sampling_params=asked)
        assert by_text["output_ids"] == ids[: stop + 2]
        assert by_text["meta_info"]["finish_reason"] == {"type": "stop", "matched": piece}
        assert len(values(by_text)) == stop + 2


def test_streams_show_the_answer_grow(client):
    whole = generate(client, sampling_params=long())
    body = {"input_ids": PROMPT, "sampling_params": long(), "stream": True}
    with client.stream("POST", "/generate", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len(events) >= 3
    lengths = [len(event["output_ids"]) for event in events]
    assert lengths == sorted(lengths) and lengths[-1] == 400
    assert events[-1]["output_ids"] == whole["output_ids"]
    assert events[-1]["text"] == whole["text"]
    assert [event["meta_info"]["finish_reason"] is None for event in events[:-1]].count(False) == 0
    body |= {"input_ids": [PROMPT, PROMPT], "sampling_params": params(n=2)}
    with client.stream("POST", "/generate", json=body) as response:
        events = [json.loads(x[6:]) for x in response.iter_lines() if x and "DONE" not in x]
    assert {event["index"] for event in events} == {0, 1, 2, 3}
    body = {"input_ids": PROMPT, "sampling_params": long(stream_interval=100), "stream": True}
    with client.stream("POST", "/generate", json=body) as response:
        events = [json.loads(x[6:]) for x in response.iter_lines() if x and "DONE" not in x]
    lengths = [0, *(len(event["output_ids"]) for event in events)]
    assert all(b - a >= 100 for a, b in zip(lengths, lengths[1:-1], strict=False))
    assert lengths[-1] == 400 and 2 <= len(events) <= 4


REFUSED = {
    "max_tokens": ({"sampling_params": {"max_tokens": 5}}, "max_tokens"),
    "no prompt": ({"input_ids": None}, "either text or input_ids"),
    "both": ({"text": "a"}, "either text or input_ids"),
    "empty": ({"input_ids": []}, "token ids"),
    "vocabulary": ({"input_ids": [5, 300]}, "vocabulary of 300"),
    "negative": ({"input_ids": [-1]}, "vocabulary"),
    "type": ({"input_ids": ["a"]}, "int"),
    "context": ({"sampling_params": {"max_new_tokens": 508}}, "context of 512"),
    "none": ({"sampling_params": {"max_new_tokens": 0}}, "at least 1"),
    "temperature": ({"sampling_params": {"temperature": -1}}, "temperature"),
    "top_p": ({"sampling_params": {"top_p": 0}}, "top_p"),
    "top_k": ({"sampling_params": {"top_k": 0}}, "top_k"),
    "min_p": ({"sampling_params": {"min_p": 2}}, "min_p"),
    "interval": ({"sampling_params": {"stream_interval": 0}}, "stream_interval"),
    "n": ({"sampling_params": {"n": 9}}, "n must be in"),
    "stop id": ({"sampling_params": {"stop_token_ids": [2**40]}}, "stop_token_ids"),
    "negative stop id": ({"sampling_params": {"stop_token_ids": [-1]}}, "stop_token_ids"),
    "stop ids": ({"sampling_params": {"stop_token_ids": list(range(65))}}, "at most 64"),
    "no texts": ({"input_ids": None, "text": []}, "at least one prompt"),
    "penalty": ({"sampling_params": {"frequency_penalty": 0.5}}, "frequency_penalty"),
    "regex": ({"sampling_params": {"regex": "a+"}}, "regex"),
    "input logprobs": ({"logprob_start_len": 0}, "logprob_start_len"),
    "top logprobs": ({"top_logprobs_num": 3}, "top_logprobs_num"),
    "twice": ({"input_ids": [[1], [2]], "rid": ["one", "one"]}, "twice"),
    "lengths": ({"input_ids": [[1], [2]], "rid": ["one"]}, "rid has 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_with_a_reason(client, case):
    changes, message = REFUSED[case]
    body = {"input_ids": PROMPT, "return_logprob": True} | changes
    response = client.post("/generate", json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_the_coldest_temperatures_take_the_likeliest_token(client):
    greedy, cold = (
        generate(client, sampling_params=params(temperature=t), return_logprob=True)
        for t in (0.0, 2e-38)
    )
    assert cold["output_ids"] == greedy["output_ids"] and np.isfinite(values(cold)).all()


def test_unknown_keys_of_the_body_are_ignored_and_neutral_options_taken(client):
    sampling = params(frequency_penalty=0.0, repetition_penalty=1.0, top_k=1 << 30, min_p=0.0)
    answer = generate(client, sampling_params=sampling, something_new=1)
    assert len(answer["output_ids"]) == 10
    assert client.post("/generate", content=b"{not json").status_code == 400
    assert client.get("/generate").status_code == 405
    assert client.get("/nothing").status_code == 404


def test_an_update_serves_the_new_weights_and_nothing_stale(client, weights):
    before = generate(client, sampling_params=params())
    for flush in (False, True):
        for name in ("second", "first"):
            body = {"model_path": str(weights / name), "weight_version": f"{name}-{flush}"}
            done = client.post("/update_weights_from_disk", json=body | {"flush_cache": flush})
            assert done.status_code == 200
            assert done.json()["success"] and done.json()["num_paused_requests"] == 0
            info = client.get("/model_info").json()
            assert info["weight_version"] == f"{name}-{flush}"
            assert info["model_path"] == str(weights / name)
            assert info["served_model_name"] == "first"
            answer = generate(client, sampling_params=params())
            assert answer["meta_info"]["cached_tokens"] == 0
            assert answer["meta_info"]["weight_version"] == f"{name}-{flush}"
            np.testing.assert_allclose(values(answer), exact(weights / name, answer), atol=1e-4)
    assert answer["output_ids"] == before["output_ids"]


def test_a_bad_update_changes_nothing(client, weights, tmp_path):
    before = generate(client, sampling_params=params())
    (weights / "link").unlink(missing_ok=True)
    (weights / "link").symlink_to(tmp_path)
    broken = weights / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "config.json").write_bytes((weights / "first/config.json").read_bytes())
    for path, reason in (
        (weights / "missing", "no folder"),
        (weights / "narrow", "architecture"),
        (broken, "safetensors"),
        (tmp_path, "weights-root"),
        (weights / "../..", "weights-root"),
        (weights / "link", "weights-root"),
    ):
        body = {"model_path": str(path), "weight_version": "bad"}
        response = client.post("/update_weights_from_disk", json=body)
        assert response.status_code == 400 and response.json()["success"] is False
        assert reason in response.json()["message"]
    assert client.post("/update_weights_from_disk", json={}).status_code == 400
    body = {"model_path": str(weights / "second"), "load_format": "dummy"}
    assert client.post("/update_weights_from_disk", json=body).status_code == 400
    after = generate(client, sampling_params=params())
    assert after["output_ids"] == before["output_ids"]
    assert after["meta_info"]["weight_version"] == "default"


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_an_update_in_the_middle_of_an_answer(client: httpx.Client, served: Served, weights, mode):
    """Spans tell each token's version; retracted answers have their past computed anew."""
    asking = Asking(served.url, sampling_params=long())
    wait_until(client, running=1)
    assert client.post("/pause_generation", json={"mode": mode}).status_code == 200
    wait_until(client, running=mode == "in_place", waiting=mode == "retract")
    body = {"model_path": str(weights / "second"), "weight_version": "second"}
    done = client.post("/update_weights_from_disk", json=body).json()
    assert done["num_paused_requests"] == (mode == "in_place")
    time.sleep(0.3)
    assert asking.is_alive()  # an update alone does not go on
    client.post("/continue_generation", json={})
    answer = asking.result()
    old, new = answer["meta_info"]["weight_versions"]
    middle = old["end"]
    assert (old["version"], new["version"]) == ("default", "second")
    assert old["start"] == 0 < middle == new["start"] < new["end"] == 400
    assert answer["meta_info"]["weight_version"] == "second"
    logprobs = np.array(values(answer))
    before, after = exact(weights / "first", answer), exact(weights / "second", answer)
    np.testing.assert_allclose(logprobs[:middle], before[:middle], atol=1e-4)
    if mode == "in_place":  # the old weights' last token had been decided when the new ones came
        assert abs(logprobs[middle - 1] - after[middle - 1]) > 1e-3
    gap = np.abs(logprobs[middle:] - after[middle:])
    assert gap.max() < 1e-3 if mode == "retract" else gap[0] > 1e-3


def test_a_pause_may_abort_and_holds_what_comes_later(client, served):
    asking = Asking(served.url, sampling_params=long())
    wait_until(client, running=1)
    client.post("/pause_generation", json={})
    answer = asking.result()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert len(answer["output_ids"]) == len(values(answer)) < 400
    later = Asking(served.url, sampling_params=params())
    wait_until(client, running=0, waiting=1)
    assert client.post("/flush_cache").status_code == 400
    client.post("/continue_generation", json={})
    assert len(later.result()["output_ids"]) == 10
    assert client.post("/flush_cache").status_code == 200
    assert generate(client, sampling_params=params())["meta_info"]["cached_tokens"] == 0
    assert client.post("/pause_generation", json={"mode": "sideways"}).status_code == 400


def test_requests_are_aborted_by_name(client, served):
    gone = Asking(served.url, sampling_params=long(), rid="gone")
    stays = Asking(served.url, sampling_params=long(), rid="stays")
    wait_until(client, running=2)
    client.post("/abort_request", json={"rid": "gone"})
    answer = gone.result()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert len(stays.result()["output_ids"]) == 400
    every = [Asking(served.url, sampling_params=long()) for _ in range(3)]
    wait_until(client, running=3)
    client.post("/abort_request", json={"abort_all": True})
    assert {a.result()["meta_info"]["finish_reason"]["type"] for a in every} == {"abort"}


def test_memory_is_given_back_and_taken_again(client, served):
    before = generate(client, sampling_params=params())
    assert client.post("/release_memory_occupation", json={}).status_code == 200
    later = Asking(served.url, sampling_params=params())
    time.sleep(0.3)
    assert later.is_alive()
    assert client.post("/resume_memory_occupation", json={}).status_code == 200
    assert later.result()["output_ids"] == before["output_ids"]
    client.post("/release_memory_occupation", json={"tags": ["kv_cache", "cuda_graph"]})
    assert client.get("/health_generate").status_code == 503
    later = Asking(served.url, sampling_params=params())
    wait_until(client, running=0, waiting=1)
    client.post("/resume_memory_occupation", json={"tags": ["kv_cache"]})
    assert later.result()["output_ids"] == before["output_ids"]
    assert client.post("/release_memory_occupation", json={"tags": ["x"]}).status_code == 400
    # There are no CUDA graphs, so nothing is given up with them: not the contexts that are held.
    held = generate(client, sampling_params=params())["meta_info"]["cached_tokens"]
    client.post("/release_memory_occupation", json={"tags": ["cuda_graph"]})
    assert generate(client, sampling_params=params())["meta_info"]["cached_tokens"] >= held > 0


def test_health_and_figures(client):
    assert client.get("/health").status_code == client.get("/health_generate").status_code == 200
    generate(client, sampling_params=params())
    figures = dict(
        line.rsplit(" ", 1)
        for line in client.get("/metrics").text.splitlines()
        if not line.startswith("#")
    )
    assert float(figures["sglang:generation_tokens_total"]) >= 10
    assert float(figures["sglang:time_to_first_token_seconds_count"]) >= 1
    assert float(figures["sglang:num_running_reqs"]) == 0
    assert client.get("/server_info").json()["max_context_length"] == 512
