"""`python -m fst_jax.tasks`, and the guide's example from beginning to end."""

import json
import re
import sys
from pathlib import Path

import pytest

from fst_jax.settings import command
from fst_jax.tasks.__main__ import main
from tests.task_samples import POLARIS, write_jsonl

GUIDE = Path(__file__).parents[2] / "docs/tasks.md"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tasks", *map(str, arguments)])
    return command(main)


@pytest.fixture
def roman(tmp_path, monkeypatch):
    """The guide's task and config in the working folder."""
    text = GUIDE.read_text()
    (python,) = re.findall(r"`roman\.py`:\n\n```python\n(.*?)```", text, re.DOTALL)
    (config,) = re.findall(r"`roman\.yaml`:\n\n```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "roman.py").write_text(python)
    (tmp_path / "roman.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guides_task_has_nothing_to_mend(roman, monkeypatch, capsys):
    for target in ("roman.py", "roman.yaml", "roman", "roman.py:Roman"):
        assert run(monkeypatch, "check", target, "--task.options.largest", "90") == 0
        shown = capsys.readouterr().out
        assert "task roman: 80 train and 9 test problems" in shown
        assert "user: Write 2 in Roman numerals." in shown
        assert "gold, in answer tags: <answer>II</answer>\n    reward 1, correct" in shown
        assert "| End with the result inside <answer> and </answer>." in shown
        assert re.search(r"scorer: [\d.]+ ms an answer in the median", shown)
        assert "nothing to mend" in shown


def _train(monkeypatch, model, *more):
    from tests.tiny_run import run as train

    settings = ["--config", "roman.yaml", "--model.path", str(model), "--train.steps", "1"]
    longer = ["--rollout.max_prompt_tokens", "400", "--eval.samples", "1"]
    assert train(monkeypatch, [*settings, *longer, *more]) == 0


def test_the_guides_config_is_valid(roman, model, monkeypatch, capsys):
    _train(monkeypatch, model, "--dry-run")
    assert "task: roman, 80 train and 9 test problems" in capsys.readouterr().out


@pytest.mark.slow
def test_the_guides_run_trains(roman, model, monkeypatch):
    from tests.tiny_run import events

    _train(monkeypatch, model)
    found = events(roman / "runs/roman")
    assert {event["task"] for event in found} == {"roman"}
    assert [event["event"] for event in found if event["event"] != "eval"] == ["evolve", "step"]


BAD = """
from fst_jax.tasks.task import Problem, Score
calls = []
class Bad:
    name, seed_prompt = "bad", "Answer."
    def problems(self, split):
        return [Problem(f"{split}{i}", f"Say {i}", f"word{i}") for i in range(30)]
    def render(self, problem):
        return [{"role": "user", "content": problem.question}]
    def score(self, problem, text):
"""


@pytest.mark.parametrize(
    ("body", "finding"),
    [
        ("return Score(0.0, 'Try.', 'wrong')", "earns nothing alone, tagged, boxed or fenced"),
        ("return Score(1.0, 'Try.', 'right')", "an empty answer earns 1"),
        ("return Score(0.5, '', 'right')", "some feedback is empty"),
        ("return Score(0.5, 'Try.', '')", "some category is empty"),
        ("return Score(0.5, f'Say {problem.answer}', 'x')", "the first line of feedback tells"),
        ("return Score(0.5, text[:99] + '!', 'x')", "different first lines of feedback"),
        ("return Score(0.5, 'Try.', str(hash(text)))", "categories: a category must not depend"),
        ("calls.append(1); return Score(len(calls) % 7 / 7, 'Try.', 'x')", "must be pure"),
        ("return Score(0.5, 'Try.', 'x')", "are in both splits: test would be trained on"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, monkeypatch, capsys, body, finding):
    (tmp_path / "bad.py").write_text(f"{BAD}        {body}\n")
    assert run(monkeypatch, "check", tmp_path / "bad.py") == 1
    assert finding in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return Score(2.0, 'Try.', 'x')", "rewards must be in"),
        ("return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_scorer_that_fails_ends_the_check(tmp_path, monkeypatch, capsys, body, message):
    (tmp_path / "bad.py").write_text(f"{BAD}        {body}\n")
    assert run(monkeypatch, "check", tmp_path / "bad.py") == 2
    assert message in capsys.readouterr().err


def test_a_slow_scorer_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fst_jax.tasks.check.SLOW_S", 0.0)
    path = write_jsonl(tmp_path / "polaris.jsonl", POLARIS)
    options = ["--task.options.question_field", "problem", "--task.options.scorer", "number"]
    assert run(monkeypatch, "check", path, *options) == 1
    shown = capsys.readouterr().out
    assert re.search(r"scoring 256 answers takes [\d.]+ s, more than 0 s", shown)
    assert "both splits" not in shown  # one file stands for both


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("star_grap", "did you mean 'star_graph'"),
        ("none.py", "cannot read none.py"),
        ("two.py", "2 classes with the methods"),
        ("zero.py", "no class with the methods problems, render and score"),
        ("odd.py", "not valid Python"),
    ],
)
def test_targets_that_are_no_task(tmp_path, monkeypatch, capsys, target, message):
    monkeypatch.chdir(tmp_path)
    task = BAD + "        pass\n"
    Path("two.py").write_text(task + task.replace("class Bad", "class Worse"))
    Path("zero.py").write_text("class Task: pass\n")
    Path("odd.py").write_text("class\n")
    assert run(monkeypatch, "check", target) == 2
    assert message in capsys.readouterr().err


def test_the_sample_encyclopedia_is_imported(tmp_path, monkeypatch, capsys):
    pytest.importorskip("bm25s")
    assert run(monkeypatch, "hover-sample", "--output", tmp_path / "hover") == 0
    shown = capsys.readouterr().out
    assert re.search(r"train: \d+ of 1200 claims kept", shown)
    assert f"task: {{name: hover, options: {{folder: {tmp_path}/hover}}}}" in shown
    lines = (tmp_path / "hover/train.jsonl").read_text().splitlines()
    assert all(json.loads(line)["gold"] for line in lines)
    folder = f"--task.options.folder={tmp_path}/hover"
    assert run(monkeypatch, "check", "hover", folder) == 0
