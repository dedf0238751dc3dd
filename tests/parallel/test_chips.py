"""Utilisation against the peak of known chips."""

import itertools
import types

import jax
import pytest

from fst_jax.parallel.chips import CHIPS, chip_of, links, utilisation


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5", 459e12), ("TPU v5 lite", 197e12), ("NVIDIA H100 80GB", 989e12)]
)
def test_known_chips(kind: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert utilisation(peak * 4 * 3, seconds=6.0) == pytest.approx(0.5)


def test_unknown_devices_have_none() -> None:
    assert utilisation(1e12, 1.0) is None  # the CPU of the tests


def test_no_kind_hides_a_longer_one() -> None:
    names = list(CHIPS)
    for i, name in enumerate(names):
        assert not any(name.startswith(earlier) for earlier in names[:i])


@pytest.mark.parametrize(
    ("kind", "shape", "covered", "wanted"),
    [
        ("TPU v5", (4, 4, 4), (4, 4, 4), 6),  # a cube, closed in all dimensions
        ("TPU v5", (4, 4, 4), (4, 1, 1), 2),
        ("TPU v5", (2, 2, 1), (2, 2, 1), 2),  # too small to be closed
        ("TPU v5", (4, 4, 8), (4, 4, 4), 5),  # half of a ring is a line
        ("TPU v6 lite", (8, 8, 1), (8, 8, 1), 2),
        ("TPU v6 lite", (16, 16, 1), (16, 16, 1), 4),
    ],
)
def test_links_along_mesh_axes(kind, shape, covered, wanted) -> None:
    places = itertools.product(*map(range, covered))
    devices = [types.SimpleNamespace(coords=place) for place in places]
    chip = chip_of(kind)
    assert chip is not None and links(chip, devices, shape) == wanted


def test_facts_are_those_of_the_longest_name() -> None:
    assert chip_of("TPU v5 lite") is not chip_of("TPU v5") is CHIPS["TPU v5"]
    assert chip_of("cpu") is None
