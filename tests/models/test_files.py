"""What a model folder may not do: lead elsewhere, claim sizes it has not, or run code."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fst_jax.errors import ModelError
from fst_jax.models.files import LONGEST_JSON, file_in
from fst_jax.models.folder import copy_companions, load_config, load_tokenizer, stop_ids
from fst_jax.models.huggingface import load_model
from fst_jax.models.shards import INDEX, SINGLE
from tests.helpers import tiny_model_folder


def read_all(folder: Path) -> None:
    load_config(folder)
    load_tokenizer(folder)
    stop_ids(folder)
    load_model(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "model")


def hub_cache(folder: Path, root: Path) -> Path:
    """The folder as huggingface_hub keeps it: links from a snapshot to blobs."""
    snapshot, blobs = root / "snapshots/abc123", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_the_hubs_cache_and_links_within_a_folder_work(folder, tmp_path):
    (folder / "parts").mkdir()
    (folder / "config.json").rename(folder / "parts/settings")
    (folder / "config.json").symlink_to("parts/settings")
    read_all(folder)
    (tmp_path / "elsewhere").symlink_to(folder)  # the folder itself may be a link
    read_all(tmp_path / "elsewhere")
    snapshot = hub_cache(tiny_model_folder(tmp_path / "plain"), tmp_path / "models--x--y")
    read_all(snapshot)
    copied = tmp_path / "copied"
    copied.mkdir()
    copy_companions(snapshot, copied)
    assert not any(file.is_symlink() for file in copied.iterdir())


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer.model", "generation_config.json", SINGLE]
)
def test_no_link_leads_out_of_a_folder(folder, tmp_path, name):
    """Its target would be read as the model's, and copied into every export."""
    secret = tmp_path / "id_rsa"
    secret.write_text("a private key")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(ModelError, match=f"{name} is a link to a file outside") as caught:
        read_all(folder)
    assert "private" not in str(caught.value)
    snapshot = hub_cache(folder, tmp_path / "models--x--y")
    with pytest.raises(ModelError, match="is a link to a file outside"):
        read_all(snapshot)
    if name.startswith(("tokenizer", "generation")):
        out = tmp_path / "export"
        out.mkdir()
        with pytest.raises(ModelError, match="outside"):
            copy_companions(snapshot, out)
        assert not any("private" in file.read_text() for file in out.iterdir())


@pytest.mark.parametrize(
    "name",
    ["../other/model.safetensors", "/etc/passwd", "..", ".", "", "a\0b", "a" * 300, 7, "a\\b"],
)
def test_an_index_names_files_of_its_folder_alone(folder, tmp_path, name):
    tiny_model_folder(tmp_path / "other")
    (folder / SINGLE).rename(folder / "x.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelError, match="not a plain file name"):
        load_model(folder)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"{", b"\xff", b'{"n":' + b"9" * 5000 + b"}", b""],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_damaged_and_deep_json(folder, name, content):
    if name == INDEX:
        (folder / SINGLE).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} cannot be read: not valid JSON"):
        read_all(folder)


def test_files_are_no_larger_than_they_may_be(folder):
    os.truncate(folder / "config.json", LONGEST_JSON + 1)
    with pytest.raises(ModelError, match=f"more than the {LONGEST_JSON}"):
        load_config(folder)
    os.truncate(folder / "tokenizer.json", 1 << 40)  # a hole, no bytes
    with pytest.raises(ModelError, match=r"tokenizer.json has \d+ bytes"):
        load_tokenizer(folder)


def test_pipes_and_folders_are_no_files(folder):
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)
    assert file_in(folder, SINGLE) is None
    with pytest.raises(ModelError, match="neither"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9}, {"num_hidden_layers": 10**30}, {"hidden_size": 1 << 40},
        {"vocab_size": 1 << 62}, {"head_dim": 1 << 33}, {"rms_norm_eps": "x"},
        {"rms_norm_eps": -1.0}, {"rope_scaling": 3}, {"rope_scaling": [1]}, {"rope_theta": 1e400},
        {"layer_types": 3}, {"model_type": []}, {"hidden_act": {}}, {"rope_scaling": {"type": []}},
        {"original_max_position_embeddings": "x"},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": "x"},
    ],
)  # fmt: skip
def test_absurd_settings(folder, changes):
    """In no time, and for the tokenizer too, which transformers loads with them in hand."""
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    for part in (load_config, load_tokenizer, load_model):
        with pytest.raises(ModelError, match=r"config\.json"):
            part(folder)


def with_header(change: Callable[[dict[str, Any], list[str]], object]) -> Callable[[bytes], bytes]:
    """The file with another header."""

    def changed(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        change(header, [name for name in header if name != "__metadata__"])
        written = json.dumps(header).encode()
        return struct.pack("<Q", len(written)) + written + data[8 + length :]

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:100],
        lambda data: data[:-10],
        lambda data: data + b"more",
        lambda data: struct.pack("<Q", 1 << 63) + data[8:],
        lambda data: struct.pack("<Q", len(data)) + data[8:],
        lambda data: struct.pack("<Q", 500_000) + b'{"a":' * 100_000,
        with_header(lambda header, names: header[names[0]].update(data_offsets=[0, 1 << 62])),
        with_header(lambda header, names: header[names[0]].update(data_offsets=[1 << 62, 0])),
        with_header(lambda header, names: header[names[0]].update(data_offsets=[-4, 0])),
        with_header(
            lambda header, names: header[names[1]].update(
                data_offsets=header[names[0]]["data_offsets"]
            )
        ),
        with_header(lambda header, names: header[names[1]].update(shape=[1 << 40, 1 << 40])),
        with_header(lambda header, names: header[names[1]].update(shape=[1 << 33, 1 << 31])),
        with_header(lambda header, names: header[names[1]].update(shape=[-1])),
        with_header(lambda header, names: header[names[1]].update(dtype="F8_E4M3")),
        with_header(lambda header, names: header.pop(names[0])),
    ],
)
def test_weights_are_what_their_header_says(folder, damage):
    """All is known from header and size, before any tensor is read or room made for it."""
    (folder / SINGLE).write_bytes(damage((folder / SINGLE).read_bytes()))
    with pytest.raises(ModelError):
        load_model(folder)


def test_a_tokenizer_that_fails_at_its_first_text(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": []}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(folder)


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        settings["auto_map"] = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil"] * 2}
        if name == "tokenizer_config.json":
            settings["tokenizer_class"] = "Evil"
        (folder / name).write_text(json.dumps(settings))
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    try:
        read_all(folder)
    except ModelError:
        pass  # one message is right as well
    assert not ran.exists()
