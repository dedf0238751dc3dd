"""A published folder is whole at every moment, whoever looks and whatever is killed."""

import threading
from pathlib import Path

import pytest

from fst_jax.models import publishing
from fst_jax.models.publishing import publish


def test_publish_replaces_only_when_complete(tmp_path):
    folder = tmp_path / "export"
    with publish(folder) as partial:
        (partial / "version").write_text("1")
        assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), publish(folder) as partial:
        (partial / "version").write_text("2")
        raise KeyboardInterrupt
    assert (folder / "version").read_text() == "1"
    with publish(folder) as partial:
        (partial / "version").write_text("3")
        assert (folder / "version").read_text() == "1"
    assert (folder / "version").read_text() == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_publish_cleans_up_after_a_killed_process(tmp_path):
    stale = tmp_path / ".export.partial"
    stale.mkdir()
    (stale / "half").write_text("")
    with publish(tmp_path / "export"):
        pass
    assert list((tmp_path / "export").iterdir()) == []


def test_there_is_a_whole_folder_at_every_moment(tmp_path: Path) -> None:
    folder, seen, done = tmp_path / "export", set(), threading.Event()

    def publish_version(version: int) -> None:
        with publish(folder) as partial:
            for name in ("a", "b"):
                (partial / name).write_text(str(version))

    def look() -> None:
        while not done.is_set():
            seen.add(folder.is_dir() and (folder / "b").is_file())

    publish_version(0)
    thread = threading.Thread(target=look)
    thread.start()
    for version in range(1, 200):
        publish_version(version)
    done.set()
    thread.join()
    assert seen == {True}


def test_where_nothing_can_change_places_a_kill_in_between_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)
    folder = tmp_path / "export"
    for version in "12":
        with publish(folder) as partial:
            (partial / "version").write_text(version)
    assert (folder / "version").read_text() == "2"
    folder.rename(tmp_path / ".export.old")  # as a kill leaves it
    with pytest.raises(KeyboardInterrupt), publish(folder):
        assert (folder / "version").read_text() == "2"
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
