"""Secrets stay in the environment: out of settings, of messages and of all that a run writes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fst_jax.config import Config
from fst_jax.errors import ConfigError, EngineError
from fst_jax.keys import key_in, masked
from fst_jax.rollout.sglang import SGLangEngine
from fst_jax.settings import load, load_file
from tests.fast import endpoint as endpoints
from tests.rollout.served import Served, serving
from tests.tiny_run import arguments, run

SECRET = "pw-9f3kQ7"
KEY = "sk-test-4f9a8b7c6d5e4f3a2b1c"


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(["--config", "configs/ci_tiny.yaml", *argv], "train", "")
    assert SECRET not in str(caught.value) and KEY not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "argv",
    [
        ("--rollout.url", f"http://user:{SECRET}@host:30000"),
        ("--rollout.url", f"http://a:1, https://{SECRET}@host"),
        ("--rollout.url", f"ftp://user:{SECRET}@host"),  # two reasons, and neither shows it
        ("--rollout.url", f"http://host/?api_key={SECRET}"),
        ("--rollout.engine", "sglang", "--rollout.url", f"http://user:{SECRET}@host"),
        ("--rollout.api_key_env", KEY),
    ],
)
def test_a_key_is_no_part_of_the_servers_settings(argv):
    assert "environment variable" in refused(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        ("--fast.lm_url", f"https://user:{SECRET}@host/v1"),
        ("--fast.lm_url", f"https://host/v1?key=1&access_token={SECRET}"),
        ("--fast.lm_api_key_env", KEY),
        ("--fast.lm_api_key_env", "hf_abcdefghijklmnopqrstuvwx"),
        ("--fast.lm_model", KEY),
        ("--fast.lm_options.api_key", SECRET),
        ("--fast.lm_options", f"{{extra_headers: {{Authorization: 'Bearer {SECRET}'}}}}"),
        ("--fast.lm_options", f"{{metadata: [{{x: '{KEY}'}}]}}"),
        ("--task.options", f"{{judge: {{password: {SECRET}}}}}"),
        ("--task.options.endpoint", f"https://me:{SECRET}@judge/v1"),
        ("--model.chat_template.token", SECRET),
    ],
)
def test_nor_of_any_others(argv):
    assert "environment variable" in refused(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        ("--fast.lm_url", "https://host.example/v1?api-version=2024-10-21"),
        ("--fast.lm_options", "{max_tokens: 5, tokenizer: x, chat_template_kwargs: {a: true}}"),
        ("--task.options.judge_api_key_env", "JUDGE_KEY"),
        ("--task.seed_prompt", "Write to me@host, or to http://host/@me; the secret is patience."),
        ("--fast.lm_api_key_env", "MY_KEY_2"),
    ],
)
def test_what_is_no_secret_is_taken(argv):
    config, _ = load(["--config", "configs/ci_tiny.yaml", *argv], "train", "")
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    "line",
    [
        f"rollout: {{url: ['http://user:{SECRET}@host']}}",
        f"rollout: {{engine: 'http://user:{SECRET}@host'}}",
        f"task: {{options: 'http://user:{SECRET}@host'}}",
        f"'http://user:{SECRET}@host': 3",
        f"slow: {{nothing: 'http://user:{SECRET}@host'}}",
        f"rollout: {{url: !tag 'http://user:{SECRET}@host'}}",
    ],
)
def test_a_message_about_another_mistake_shows_none_either(line, tmp_path):
    (tmp_path / "c.yaml").write_text(line)
    with pytest.raises(ConfigError) as caught:
        load_file(tmp_path / "c.yaml")
    assert SECRET not in str(caught.value)


def test_masked():
    text = f"at http://u:{SECRET}@host/a@b: {KEY} and https://{SECRET}@x"
    assert masked(text, KEY) == "at http://…@host/a@b: [key] and https://…@x"
    assert masked("a@b ://", None) == "a@b ://"


def test_a_key_that_no_header_can_hold(monkeypatch):
    for bad in (f"{KEY}\nX: y", f"{KEY}é"):
        monkeypatch.setenv("TEST_KEY", bad)
        with pytest.raises(ConfigError, match="TEST_KEY") as caught:
            key_in("TEST_KEY")
        assert KEY not in str(caught.value)
    monkeypatch.setenv("TEST_KEY", f" {KEY}\n")
    assert key_in("TEST_KEY") == KEY
    monkeypatch.delenv("TEST_KEY")
    assert key_in("TEST_KEY") is None


def test_what_a_server_says_is_masked(tmp_path):
    """It may repeat the key that it was sent, in a refusal or in an error that may pass."""
    with endpoints.serving() as scripted:
        url = scripted.url.removesuffix("/v1")
        for status in (401, 500):
            scripted.replies = [(status, {}, {"error": f"Bearer {KEY} is not known. " * 20})]
            with pytest.raises(EngineError) as caught:
                engine = SGLangEngine(
                    [url], lambda *_: None, tmp_path, max_context=64, batch_size=1,
                    patience_s=0.1, api_key=KEY,
                )  # fmt: skip
                engine.generate([])
            told = str(caught.value)
            assert KEY not in told and KEY[:8] not in told


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secret_runs")


@pytest.fixture(scope="module")
def served(model: Path, root: Path) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FST_JAX_API_KEY", KEY)
        with serving(model, "--weights-root", root, "--slots", 32) as server:
            yield server


def written(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_run_leaves_no_key_behind(
    served: Served, model: Path, task: Path, root: Path, monkeypatch, capfd
) -> None:
    """One server demands a key for rollouts, another for reflection."""
    monkeypatch.setenv("FST_JAX_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with endpoints.serving() as reflector:
        reflector.answer = endpoints.editor
        argv = arguments(
            model, task, root / "out", "--rollout.engine", "sglang", "--rollout.url", served.url,
            "--fast.reflector", "lm", "--fast.lm_url", reflector.url, "--train.steps", "2",
            "--tracking.tensorboard", "true", "--eval.every", "0", "--checkpoint.every", "0",
        )  # fmt: skip
        assert run(monkeypatch, argv) == 0
        sent = {headers["Authorization"] for _, headers in reflector.requests}
        assert sent == {f"Bearer {SECRET}"}
    shown = capfd.readouterr()
    for secret in (KEY, SECRET):
        assert secret.encode() not in written(root)
        assert secret not in shown.out + shown.err
    assert b"step" in written(root)  # there was something to look at


def test_a_refused_key_is_not_shown(
    served: Served, model: Path, task: Path, root: Path, monkeypatch, capfd
) -> None:
    wrong = KEY + "-wrong"
    monkeypatch.setenv("FST_JAX_API_KEY", wrong)
    more = ("--rollout.engine", "sglang", "--rollout.url", served.url)
    assert run(monkeypatch, arguments(model, task, root / "refused", *more)) == 2
    error = capfd.readouterr().err
    assert "status 401 (see rollout.api_key_env)" in error and "Traceback" not in error
    assert KEY not in error and KEY.encode() not in written(root)
