"""Utilisation against the peak of known chips."""

import types

import jax
import pytest

from fst_jax.parallel.chips import CHIPS, utilisation


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
