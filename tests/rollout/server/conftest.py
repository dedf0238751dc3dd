"""One server for all tests of its routes; each leaves it idle, unpaused, at its first weights."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers import tiny_model_folder
from tests.rollout.served import Served, serving


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the models that the server may load: first, second, and one of another shape."""
    root = tmp_path_factory.mktemp("weights")
    tiny_model_folder(root / "first", seed=0)
    tiny_model_folder(root / "second", seed=1)
    tiny_model_folder(root / "narrow", hidden=16, seed=1)
    return root


@pytest.fixture(scope="session")
def served(weights: Path) -> Iterator[Served]:
    options = ("--slots", 8, "--max-queued", 16, "--max-body-mib", 1)
    with serving(weights / "first", "--weights-root", weights, *options) as server:
        yield server


@pytest.fixture
def client(served: Served, weights: Path) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=120) as client:
        yield client
        client.post("/abort_request", json={"abort_all": True})
        client.post("/continue_generation", json={})
        if client.get("/model_info").json()["weight_version"] != "default":
            body = {"model_path": str(weights / "first"), "weight_version": "default"}
            assert client.post("/update_weights_from_disk", json=body).status_code == 200
