"""Kept lines: whole or passed over, whatever happened to the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.errors import RunError
from fst_jax.kept_lines import KeptLines

ENTRIES = [{"größer": i, "logprobs": [-0.1 * i, 1e-300], "text": "\n\u2028\x00"} for i in range(3)]


def written(path):
    lines = KeptLines(path)
    for entry in ENTRIES:
        lines.add(entry)
    return path


def test_what_was_added_is_read(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert KeptLines(path).read() == []
    assert KeptLines(written(path)).read() == ENTRIES
    KeptLines(path).clear()
    assert KeptLines(path).read() == [] and not path.exists()
    KeptLines(path).clear()
    KeptLines(None).add({})
    assert KeptLines(None).read() == []


@given(st.data())
def test_any_changed_byte_loses_its_lines_alone(tmp_path_factory, data):
    path = written(tmp_path_factory.mktemp("kept") / "lines.jsonl")
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    found = KeptLines(path).read()
    assert all(entry in ENTRIES for entry in found) and len(found) >= 1
    KeptLines(path).add({"more": 1})  # without reading, so after a line that may have no end


@given(st.data())
def test_any_cut_loses_the_last_line_alone(tmp_path_factory, data):
    path = written(tmp_path_factory.mktemp("kept") / "lines.jsonl")
    whole = path.read_bytes()
    kept = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:kept])
    lines = KeptLines(path)
    found = lines.read()
    assert found == ENTRIES[: len(found)] and len(found) >= whole[:kept].count(b"\n")
    lines.add({"more": 1})
    assert KeptLines(path).read() == [*found, {"more": 1}]


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(RunError, match="cannot read .*folder"):
        (tmp_path / "folder").mkdir()
        KeptLines(tmp_path / "folder").read()
    with pytest.raises(RunError, match="cannot write .*none"):
        KeptLines(tmp_path / "none/lines.jsonl").add({})
    with pytest.raises(RunError, match="cannot remove .*folder"):
        KeptLines(tmp_path / "folder").clear()
