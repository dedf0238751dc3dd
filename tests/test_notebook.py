"""The notebook in examples/ runs from its first cell to its last."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.processes import ROOT

NOTEBOOK = ROOT / "examples/fast_slow_training.ipynb"
SMOLLM2 = ROOT / "models/SmolLM2-135M-Instruct"


def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> list[str]:
    """What the cells printed, in order; raises where one raises."""
    for name, value in {"RUNS": str(tmp_path), "JAX_PLATFORMS": "cpu", **settings}.items():
        monkeypatch.setenv(name, value)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return ["".join(o.get("text", "") or o.get("data", {}).get("text/html", "")) for o in outputs]


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_the_small_world_in_the_notebook(tmp_path, monkeypatch):
    told = "\n".join(executed(tmp_path, monkeypatch, STEPS="2", STEPS_LLM="0"))
    assert "step 2: reward" in told and "<li>step 0" in told
    assert "trained  weights, pool prompt: mean@4" in told
    assert (tmp_path / "notebook/export/config.json").is_file()


@pytest.mark.slow
def test_all_of_the_notebook(tmp_path, monkeypatch):
    told = executed(tmp_path, monkeypatch, STEPS="2", STEPS_LLM="1", MODEL=str(SMOLLM2))
    assert "step 2: reward" in "\n".join(told)
    assert (tmp_path / "notebook_llm/metrics.jsonl").is_file()
