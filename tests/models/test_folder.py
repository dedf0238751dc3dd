"""Finding folders, their tokenizers, and publishing a folder in one step."""

import json
import re

import huggingface_hub
import pytest

from fst_jax.config import ModelSettings
from fst_jax.errors import ModelError
from fst_jax.models.folder import load_config, load_tokenizer, resolve
from tests.helpers import tiny_config, tiny_model_folder


def test_a_local_folder_is_used_as_it_is(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_a_hub_name_is_downloaded(tmp_path, monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("some-org/some-model.v2") == tmp_path
    assert asked[0][0] == "some-org/some-model.v2"
    assert {"config.json", "tokenizer.json", "model*.safetensors"} <= set(asked[0][1])


def test_no_folder_and_no_hub(monkeypatch):
    def download(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"local folder 'a/b'.*no route.*network") as caught:
        resolve("a/b")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["nowhere", "/no/such", "./models/x", "../x", "~/no/such", "a/b/c", "models/x", "exports/x"],
)
def test_what_looks_like_a_path_never_reaches_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exports").mkdir()
    with pytest.raises(ModelError, match=f"no model folder '{re.escape(path)}': give") as caught:
        resolve(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [ModelSettings().path, f"./{ModelSettings().path}"])
def test_the_default_model_is_fetched_by_make(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="`make models` fetches it"):
        resolve(path)


def test_config_errors_name_the_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(hidden_act="relu")))
    with pytest.raises(ModelError, match=f"{tmp_path.name}.*'relu'"):
        load_config(tmp_path)


def test_tokenizer(tmp_path):
    tokenizer = load_tokenizer(tiny_model_folder(tmp_path))
    messages = [{"role": "user", "content": "path 1,2"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    text = "<|im_start|>user\npath 1,2<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == 2


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "add tokenizer.json"),
        ("chat_template.jinja", "add chat_template.jinja"),
    ],
)
def test_missing_tokenizer_files(tmp_path, missing, message):
    folder = tiny_model_folder(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=message):
        load_tokenizer(folder)


def test_a_damaged_tokenizer(tmp_path):
    folder = tiny_model_folder(tmp_path)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(folder)


def test_a_template_in_the_tokenizer_config_is_enough(tmp_path):
    folder = tiny_model_folder(tmp_path)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(folder).chat_template == template
