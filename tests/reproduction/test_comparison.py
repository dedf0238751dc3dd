"""The table that the demonstration ends with."""

import json
from pathlib import Path

from fst_jax.fast.pool import Pool
from fst_jax.reporting.runs import read
from fst_jax.reproduction.comparison import prompts, table
from tests.reproduction.records import write_run


def test_the_table_holds_both_curves_and_the_drift(tmp_path: Path) -> None:
    rl = read(write_run(tmp_path / "main/star_graph.rl.seed0", "rl", [0.0, 0.125, 0.75]))
    fst = read(write_run(tmp_path / "main/star_graph.fst.seed0", "fst", [0.0, 0.5, 0.875]))
    lines = table(rl, fst)
    assert "mean@4 over 64 problems" in lines[0]
    rows = [line.split() for line in lines[2:5]]
    assert [row[:4] for row in rows] == [
        ["0", "0", "0.000", "0.000"],
        ["6", "768", "0.125", "0.500"],
        ["12", "1536", "0.750", "0.875"],
    ]
    assert "RL 1.200, FST 1.200" in "\n".join(lines)


def test_each_prompt_in_use_is_shown_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "main/star_graph.fst.seed0", "fst", [0.0, 0.5])
    pool = Pool.start("Answer.", 3, 0).to_json()
    (folder / "pool").mkdir()
    (folder / "pool/0.json").write_text(json.dumps(pool))
    assert len(pool["active"]) == 3
    assert [line.split()[-1] for line in prompts(read(folder))[1:]] == ["Answer."]
