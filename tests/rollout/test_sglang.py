"""The client of SGLang's protocol, against real servers, and through one that spoils answers.

`served` is the embedded server; `make test-sglang` runs the same tests against a real SGLang
server as well, whose address is in FST_JAX_TEST_SGLANG_URL and whose model folder in
FST_JAX_TEST_SGLANG_MODEL.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from fst_jax.config import ParallelSettings
from fst_jax.errors import ConfigError, EngineError
from fst_jax.models.decoder import Decoder
from fst_jax.models.folder import load_config
from fst_jax.models.huggingface import load_model, save_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.engine import Completion, Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.rollout.sglang import SGLangEngine
from tests.helpers import tiny_model_folder
from tests.rollout import faults
from tests.rollout.faults import Faults
from tests.rollout.served import Served, serving
from tests.slow import tiny

REAL = os.environ.get("FST_JAX_TEST_SGLANG_URL")
STOPS = (2, 30, 31)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    return folder.parent / "weights"


@pytest.fixture(scope="module")
def model(folder: Path) -> Decoder:
    return load_model(folder)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, "--weights-root", folder.parent, "--slots", 8) as server:
        yield server


@pytest.fixture
def proxy(served: Served) -> Iterator[Faults]:
    with Faults(served.url) as proxy:
        yield proxy


@pytest.fixture
def connect(folder: Path, weights: Path) -> Callable[..., SGLangEngine]:
    config = load_config(folder)

    def connect(*urls: str, **options: Any) -> SGLangEngine:
        return SGLangEngine(
            urls,
            lambda path, params: save_model(path, params, config, folder),
            weights,
            max_context=512,
            batch_size=8,
            **{"timeout_s": 60.0, "patience_s": 60.0} | options,
        )

    return connect


def requests(**changes: Any) -> list[Request]:
    return [
        Request(
            tuple(range(10 + i, 20 + 2 * i)),
            **{
                "n": 3, "max_new_tokens": 12, "temperature": 0.5 if i % 2 else 1.0,
                "stop_ids": STOPS, "seed": 70 + i,
            } | changes,
        )
        for i in range(4)
    ]  # fmt: skip


def ids(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids.tolist() for completion in group] for group in groups]


def check(asked: list[Request], groups: list[list[Completion]], params: Any, folder: Path) -> None:
    """Every sample is there once, ends as it says, with the model's log-probabilities."""
    weights, config = tiny.weights(params), load_config(folder)
    for request, group in zip(asked, groups, strict=True):
        assert len(group) == request.n
        for done in group:
            assert len(done.ids) == len(done.logprobs) <= request.max_new_tokens
            assert (done.finish_reason == "stop") == (int(done.ids[-1]) in STOPS)
            exact = tiny.logprobs(
                weights, config, request.prompt_ids, done.ids, request.temperature
            )
            np.testing.assert_allclose(done.logprobs, exact, atol=1e-4)


def test_the_same_samples_as_in_process(served, connect, model, folder):
    engine = connect(served.url)
    assert engine.capabilities.update_weights and engine.capabilities.max_context == 512
    local = LocalEngine(model, make_mesh(ParallelSettings()), 8)
    for asked in (requests(), requests(top_p=0.7, top_k=20, min_p=0.01), requests(temperature=0.0)):
        groups = engine.generate(asked)
        assert ids(groups) == ids(local.generate(asked))
    asked = requests()
    check(asked, engine.generate(asked), nnx.state(model), folder)
    assert engine.generate([]) == []
    with pytest.raises(ConfigError, match="context of 512"):
        engine.generate([Request((1,) * 510, max_new_tokens=3)])


def test_new_weights_are_written_served_and_named(served, connect, model, folder, weights):
    (weights / "mine").mkdir(parents=True)
    engine = connect(served.url)
    for version in range(1, 5):
        params = tiny.perturbed(nnx.state(model), seed=version, scale=0.1)
        engine.update_weights(params, version)
        groups = engine.generate(requests())
        check(requests(), groups, params, folder)
        assert {c.weight_version for group in groups for c in group} == {version}
    assert len(list(weights.glob("*-*"))) == 2 and (weights / "mine").is_dir()
    again = connect(served.url)  # a process that goes on with the run
    again.update_weights(params, 5)
    assert len(list(weights.glob("*-*"))) == 1 and (weights / "mine").is_dir()
    before = sorted(weights.iterdir())
    engine = again
    engine.update_weights(params, 9)  # the same arrays: there is nothing to send
    assert sorted(weights.iterdir()) == before
    assert engine.generate(requests())[0][0].weight_version == 9


def _first_logprob(value: Any) -> Any:
    def change(answer: dict[str, Any]) -> None:
        answer["meta_info"]["output_token_logprobs"][0][0] = value

    return faults.in_first(change)


def _meta(**changes: Any) -> Any:
    return faults.in_first(lambda answer: answer["meta_info"].update(changes))


def _shortened(answer: dict[str, Any]) -> None:
    answer["output_ids"] = answer["output_ids"][:-1]
    answer["meta_info"]["output_token_logprobs"].pop()


FAULTS = {
    "500": faults.status(500),
    "503": faults.status(503),
    "429": faults.status(429),
    "stall": faults.stall(4.0),
    "reset": faults.reset,
    "truncated": faults.truncated,
    "half": faults.half,
    "no json": faults.no_json,
    "NaN": _first_logprob(float("nan")),
    "null": _first_logprob(None),
    "positive": _first_logprob(0.5),
    "text": _first_logprob("-1"),
    "other tokens": faults.in_first(
        lambda answer: answer["meta_info"]["output_token_logprobs"][0].__setitem__(1, 299)
    ),
    "short": faults.in_first(_shortened),
    "no logprobs": _meta(output_token_logprobs=None),
    "aborted": _meta(finish_reason={"type": "abort", "message": "x"}),
    "no reason": _meta(finish_reason=None),
    "no meta": faults.in_first(lambda answer: answer.pop("meta_info")),
    "wrong version": _meta(weight_version="old"),
    "mixed versions": _meta(weight_versions=[{"version": "old", "start": 0, "end": 1}]),
    "one too few": faults.changed(lambda answers: answers[1:]),
    "one twice": faults.changed(lambda answers: [answers[0], *answers[:-1]]),
    "not a list": faults.changed(lambda answers: answers[0]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_spoiled_answers_are_asked_again(proxy, connect, model, folder, fault):
    """No rollout is lost, counted twice, or taken under the wrong version."""
    engine = connect(proxy.url, timeout_s=2.0)
    params = tiny.perturbed(nnx.state(model), seed=1, scale=0.1)
    engine.update_weights(params, 3)
    proxy.spoil("/generate", FAULTS[fault], FAULTS[fault])
    asked = requests()
    groups = engine.generate(asked)
    assert proxy.left == 0
    check(asked, groups, params, folder)
    local = LocalEngine(nnx.merge(nnx.graphdef(model), params), make_mesh(ParallelSettings()), 8)
    assert ids(groups) == ids(local.generate(asked))


@pytest.mark.parametrize(
    "path",
    ["/pause_generation", "/update_weights_from_disk", "/model_info", "/continue_generation"],
)
@pytest.mark.parametrize("fault", ["500", "reset", "half", "lost"])
def test_a_sync_is_repeated_until_it_is_known_to_have_worked(
    proxy, connect, model, folder, path, fault
):
    engine = connect(proxy.url, timeout_s=30.0)
    proxy.spoil(path, FAULTS.get(fault, faults.LOST))
    params = tiny.perturbed(nnx.state(model), seed=2, scale=0.1)
    engine.update_weights(params, 5)
    asked = requests()
    check(asked, engine.generate(asked), params, folder)
    assert proxy.left == 0


def test_refusals_end_at_once_and_say_why(proxy, connect, model, tmp_path, folder):
    engine = connect(proxy.url)
    proxy.spoil("/generate", faults.status(400))
    with pytest.raises(EngineError, match="status 400"):
        engine.generate(requests())
    outside = SGLangEngine(
        [proxy.url],
        lambda path, params: save_model(path, params, load_config(folder), folder),
        tmp_path / "elsewhere",
        max_context=512,
        batch_size=8,
    )
    with pytest.raises(EngineError, match="weights-root"):
        outside.update_weights(nnx.state(model), 1)


def test_the_server_that_refuses_is_named_and_not_the_busy_one(served, connect):
    with Faults(served.url) as busy, Faults(served.url) as strict:
        engine = connect(busy.url, strict.url)
        busy.spoil("/generate", *[faults.status(429)] * 50)
        strict.spoil("/generate", *[faults.status(400)] * 50)
        with pytest.raises(EngineError, match=f"{strict.url}/generate refused .* status 400"):
            engine.generate(requests(n=12))


def test_a_server_of_fixed_weights_serves_its_own(proxy, connect, model, folder):
    proxy.spoil("/update_weights_from_disk", faults.status(404))
    engine = connect(proxy.url)
    assert not engine.capabilities.update_weights
    params = nnx.state(model)
    engine.update_weights(params, 0)
    engine.update_weights(params, 1)
    with pytest.raises(EngineError, match="fixed weights"):
        engine.update_weights(tiny.perturbed(params, 0, 0.1), 2)


def test_a_dead_server_ends_the_run_with_a_message(connect):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(EngineError, match=f"{url} has failed for .* start it.*resume"):
        connect(url, patience_s=1.0)
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_anew(connect, model, folder):
    """Amid a batch; the new one gets the newest weights before it answers."""
    params = tiny.perturbed(nnx.state(model), seed=4, scale=0.1)
    asked = requests(n=20, max_new_tokens=150, stop_ids=(2, *STOPS))
    with serving(folder, "--weights-root", folder.parent, "--slots", 8) as first:
        engine = connect(first.url, patience_s=300.0)
        engine.update_weights(params, 1)
        port = int(first.url.rsplit(":", 1)[1])
        killer = threading.Timer(0.3, first.stop, [signal.SIGKILL])
        killer.start()
        results: list[Any] = []
        asking = threading.Thread(target=lambda: results.append(engine.generate(asked)))
        asking.start()
        killer.join()
        assert asking.is_alive()
        with serving(folder, "--weights-root", folder.parent, "--slots", 8, port=port):
            asking.join(300)
    (groups,) = results
    for request, group in zip(asked, groups, strict=True):
        assert len(group) == request.n and {c.weight_version for c in group} == {1}
    check(asked[:1], groups[:1], params, folder)


def test_several_servers_share_the_work(served, connect, model, folder):
    with serving(folder, "--weights-root", folder.parent, "--slots", 8) as other:
        with Faults(served.url) as one, Faults(other.url) as two:
            engine = connect(one.url, two.url)
            params = tiny.perturbed(nnx.state(model), seed=6, scale=0.1)
            engine.update_weights(params, 2)
            asked = requests(n=12)
            check(asked, engine.generate(asked), params, folder)
            counts = [proxy.asked.count("/generate") for proxy in (one, two)]
            assert min(counts) >= 3 and sum(counts) == 24


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[SGLangEngine, Path, nnx.State]:
    """A real SGLang server, its model's folder, and the parameters in it."""
    if REAL is None:
        pytest.skip("NO SGLANG SERVER: `make test-sglang` starts one")
    folder = Path(os.environ["FST_JAX_TEST_SGLANG_MODEL"])
    engine = SGLangEngine(
        [REAL],
        lambda path, params: save_model(path, params, load_config(folder), folder),
        tmp_path_factory.mktemp("real") / "weights",
        max_context=256,
        batch_size=4,
        timeout_s=300,
        patience_s=300,
    )
    return engine, folder, nnx.state(load_model(folder))


REAL_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "greedy": {"temperature": 0.0},
    "truncated": {"top_p": 0.7, "top_k": 20},
    "many": {"n": 9},
    "one token": {"max_new_tokens": 1},
    "no stops": {"stop_ids": (), "max_new_tokens": 40},
}


@pytest.mark.parametrize("case", REAL_CASES)
def test_samples_of_a_real_sglang_server(real, case):
    """Each ends as it says, and its log-probabilities are the learner's."""
    engine, folder, params = real
    asked = requests(**REAL_CASES[case])
    if case == "greedy":
        asked = [replace(request, n=1) for request in asked]
    groups = engine.generate(asked)
    if case != "greedy":  # whose log-probabilities servers tell at one temperature or another
        check(asked, groups, params, folder)
        assert len({tuple(c.ids.tolist()) for group in groups for c in group}) > 1
        return
    local = LocalEngine(load_model(folder), make_mesh(ParallelSettings()), 8)
    assert ids(groups) == ids(local.generate(asked))


def test_new_weights_on_a_real_sglang_server(real):
    engine, folder, params = real
    engine.update_weights(params, 0)
    if not engine.capabilities.update_weights:
        with pytest.raises(EngineError, match="fixed weights"):
            engine.update_weights(tiny.perturbed(params, seed=1, scale=0.05), 1)
        pytest.skip("THIS SGLANG SERVER CANNOT TAKE NEW WEIGHTS (sglang-jax issue 873)")
    others = tiny.perturbed(params, seed=1, scale=0.05)
    engine.update_weights(others, 1)
    asked = requests()
    check(asked, engine.generate(asked), others, folder)
