"""The mesh over virtual devices, and every mistake in its sizes."""

import jax
import pytest
from jax.sharding import AxisType

from fst_jax.config import ParallelSettings
from fst_jax.errors import ConfigError
from fst_jax.parallel.mesh import AXES, make_mesh


def test_one_device():
    mesh = make_mesh(ParallelSettings(), jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}


def eight_devices() -> None:
    def shape(**sizes: int) -> tuple[int, ...]:
        return make_mesh(ParallelSettings(mesh=sizes)).devices.shape

    assert shape(fsdp=-1) == (1, 8, 1, 1)
    assert shape(data=2, fsdp=-1, tensor=2) == (2, 2, 2, 1)
    assert shape(tensor=8) == (1, 1, 8, 1)
    assert shape(data=2, fsdp=-1, context=2) == (2, 2, 1, 2)
    mesh = make_mesh(ParallelSettings(mesh={"data": 4, "fsdp": 2}))
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert len({device.id for device in mesh.devices.flat}) == 8
    with pytest.raises(ConfigError, match="take 3 devices, which must divide the 8"):
        shape(tensor=3, fsdp=-1)
    with pytest.raises(ConfigError, match="take 4 devices, which must equal the 8"):
        shape(data=4)


def test_eight_devices(on_devices):
    on_devices(eight_devices)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"model": 2}, "unknown axis model; the axes are data, fsdp, tensor, context"),
        ({"data": -1, "fsdp": -1}, "only one axis may be -1, not data and fsdp"),
        ({"data": 0}, "parallel.mesh.data: must be at least 1"),
        ({"tensor": -2}, "parallel.mesh.tensor: must be at least 1"),
    ],
)
def test_wrong_sizes(sizes, said):
    with pytest.raises(ConfigError, match=said):
        make_mesh(ParallelSettings(mesh=sizes))
