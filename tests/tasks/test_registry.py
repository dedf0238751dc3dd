"""Loading tasks: names, options, entry points, and what the loader refuses."""

import pytest

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.tasks.judge import judge
from fst_jax.tasks.registry import load_task
from fst_jax.tasks.task import Problem

TASK = """
import os, time
from fst_jax.tasks.task import Problem, Score

class Mine:
    name = "mine"
    seed_prompt = "Answer."
    def __init__(self, size: int = 2, offset: float | None = None): self.size = size
    def problems(self, split): return [Problem(f"{split}-{i}", "q", "a") for i in range(self.size)]
    def render(self, problem): return [{"role": "user", "content": problem.question}]
    def score(self, problem, text):
        if text == "hang": time.sleep(60)
        if text == "die": os._exit(1)
        if text == "grow": bytearray(10**9)
        if text == "nan": return Score(float("nan"), "Answer a.", "x")
        if text == "raise": raise KeyError("gold")
        if text == "float": return 1.0
        return Score(float(text == problem.answer), "Answer a.", "correct")

class Twice(Mine):
    def problems(self, split): return [Problem("same", "q", "a")]

class Dicts(Mine):
    def problems(self, split): return [{"id": 1}]

class Numbered(Mine):
    def problems(self, split): return [Problem(split, "q", 1)]

class Raises(Mine):
    def problems(self, split): raise OSError("no such disk")

class Broken(Mine):
    def __init__(self): raise ValueError("no data")

class Nameless(Mine):
    name = None

class NoScore:
    name = seed_prompt = ""
    def problems(self, split): return []
    def render(self, problem): return []
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(TASK)
    (tmp_path / "syntax.py").write_text("def")
    (tmp_path / "needy.py").write_text("import a_missing_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    __import__("sys").modules.pop("my_task", None)
    return tmp_path


def small(**settings):
    options = {"degree": 2, "path_nodes": 3, "node_range": 9, "train_size": 3, "test_size": 2}
    return TaskSettings(name="star_graph", options={**options, **settings.pop("options", {})})


def test_a_built_in_task_with_another_seed_prompt():
    settings = TaskSettings(**{**vars(small()), "seed_prompt": "Go."})
    task = load_task(settings)
    assert task.name == "star_graph" and task.seed_prompt == "Go."
    assert load_task(small()).seed_prompt != "Go."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TaskSettings(name="stargraph"), "did you mean 'star_graph'"),
        (TaskSettings(name="xyz"), "choose one of star_graph, .*, jsonl"),
        (small(options={"degre": 3}), "no option 'degre': did you mean 'degree'"),
        (small(options={"degree": "3"}), r"task.options.degree: .* needs int, not '3' \(str\)"),
        (small(options={"degree": True}), "needs int, not True"),
        (TaskSettings(name="jsonl"), "jsonl needs train_path, test_path"),
        (TaskSettings(name="jsonl", options={"train_path": 3}), "needs str"),
        (TaskSettings(name="jsonl", options={"id_field": 3}), "needs str or null"),
        (TaskSettings(name="reasoning_gym", options={"timeout_s": 3.0}), "no option 'timeout_s'"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(TaskError, match=message):
        load_task(settings)


@pytest.mark.parametrize("entry_point", ["my_task:Mine", "my_task.py:Mine"])
def test_a_users_task(folder, entry_point):
    task = load_task(
        TaskSettings(entry_point=entry_point, options={"offset": 1}, timeout_s=1.0, memory_gb=0.5)
    )
    problem = task.problems("train")[1]
    assert (task.name, task.seed_prompt, problem.id) == ("mine", "Answer.", "train-1")
    assert task.render(problem)[0]["content"] == "q"
    assert task.score(problem, "a").reward == 1.0
    assert task.score(problem, "hang").category == "timeout"
    assert task.score(problem, "die").category == "scorer crashed"
    grown = task.score(problem, "grow")
    assert (grown.reward, grown.category) == (0.0, "out of memory")
    assert "more than 0.5 GB" in grown.feedback
    with pytest.raises(TaskError, match="gave reward nan"):
        judge(task, problem, "nan")
    with pytest.raises(Exception, match=r"'gold' \(my_task.py, line 16\)") as caught:
        task.score(problem, "raise")
    assert type(caught.value).__name__ == "KeyError"
    with pytest.raises(TaskError, match="score.. must return .*Score, not float"):
        task.score(problem, "float")
    assert task.score(problem, "b").reward == 0.0


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("my_task", "write package.module:Class"),
        ("my_task:", "write package.module:Class"),
        ("nowhere:Mine", "no module 'nowhere'"),
        ("nowhere.py:Mine", "no file nowhere.py"),
        ("my_task:Min", "no class 'Min'; it defines Mine, Twice"),
        ("my_task:time", "no class 'time'"),
        ("my_task:NoScore", r"lacks the method score\(\)"),
        ("my_task:Broken", r"Broken\(\) raised ValueError: no data"),
        ("my_task:Nameless", "needs a text attribute 'name'"),
        ("my_task:Twice", "two problems the id 'same'"),
        ("my_task:Dicts", "must hold .*Problem, not dict"),
        ("my_task:Numbered", "answer of problem 'train' must be text, not int"),
        ("my_task:Raises", r"mine raised in problems\('train'\): OSError: no such disk"),
        ("syntax:Mine", "importing it raised SyntaxError"),
        ("needy:Mine", "imports a_missing_library, which is not installed"),
    ],
)
def test_what_is_wrong_with_a_users_task(folder, entry_point, message):
    with pytest.raises(TaskError, match=message):
        load_task(TaskSettings(entry_point=entry_point))


def test_empty_splits_and_options_of_a_users_task(folder):
    with pytest.raises(TaskError, match="mine has no train problems"):
        load_task(TaskSettings(entry_point="my_task:Mine", options={"size": 0}))
    with pytest.raises(TaskError, match="did you mean 'size'"):
        load_task(TaskSettings(entry_point="my_task:Mine", options={"sise": 1}))
    with pytest.raises(TaskError, match="needs float or null, not 'x'"):
        load_task(TaskSettings(entry_point="my_task:Mine", options={"offset": "x"}))


def test_built_in_problems_are_problems():
    assert isinstance(load_task(small()).problems("test")[0], Problem)
