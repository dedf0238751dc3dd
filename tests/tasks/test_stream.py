"""Streams: problems keep to their own task, stages can be told apart, mistakes are named."""

from typing import Any

import pytest

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.tasks.registry import load_task
from fst_jax.tasks.stream import stages_of

SMALL = {"degree": 2, "path_nodes": 3, "node_range": 20, "train_size": 5, "test_size": 3}
LONG = SMALL | {"path_nodes": 4, "train_size": 4, "test_size": 2}
STAGES = [
    {"name": "star_graph", "options": SMALL, "steps": 2},
    {"name": "star_graph", "options": LONG, "steps": 6, "label": "long"},
]


def stream(stages: Any, **options: Any) -> Any:
    return load_task(TaskSettings(name="stream", options={"stages": stages, **options}))


def test_problems_of_all_stages_in_turn() -> None:
    task = stream(STAGES)
    labels = [(p.id.split("/")[0]) for p in task.problems("train")]
    assert labels == ["star_graph"] * 5 + ["long"] * 4
    assert [p.id for p in task.problems("test")][-1] == "long/test-1"
    ids = [p.id for split in ("train", "test") for p in task.problems(split)]
    assert len(set(ids)) == len(ids) == 14
    first, second = stages_of(task)
    assert (first.label, first.steps, second.label, second.steps) == ("star_graph", 2, "long", 6)
    assert list(first.train) + list(second.train) == list(task.problems("train"))


def test_each_problem_is_asked_and_judged_by_its_own_task() -> None:
    task = stream(STAGES, seed_prompt="Answer.")
    assert task.seed_prompt == "Answer."
    for stage, nodes in zip(stages_of(task), (3, 4), strict=True):
        for problem in stage.train:
            assert problem.question in task.render(problem)[0]["content"]
            assert problem.answer.count(",") == nodes - 1
            assert task.score(problem, rf"\boxed{{{problem.answer}}}").reward == 1
            assert task.score(problem, r"\boxed{1}").reward == 0


def test_a_fault_of_a_stage_names_the_stage() -> None:
    options = {"train_path": "missing.jsonl", "test_path": "missing.jsonl", "scorer": "exact"}
    missing = {"name": "jsonl", "options": options, "steps": 1}
    with pytest.raises(TaskError, match=r"stages\[1\]: .*missing.jsonl"):
        stream([STAGES[0], missing])


def test_a_task_that_is_no_stream_is_one_stage() -> None:
    task = load_task(TaskSettings(options=SMALL))
    (stage,) = stages_of(task)
    assert stage.label == "star_graph" and list(stage.test) == list(task.problems("test"))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least one stage"),
        (["star_graph"], r"stages\[0\]: must be a mapping"),
        ([{"name": "star_graph", "stepps": 3}], "must be a mapping of name"),
        ([{"name": "star_graph"}], "steps must be a number"),
        ([{"name": "star_graph", "steps": 0}], "steps must be a number"),
        ([{"steps": 3}], "give either the name"),
        ([{"name": "stream", "steps": 3}], "stream excepted"),
        ([{"name": "star_grph", "steps": 3}], "did you mean 'star_graph'"),
        ([{"name": "star_graph", "steps": 3, "options": {"arms": 2}}], "no option 'arms'"),
        ([{"name": "star_graph", "steps": 3, "options": SMALL, "label": "a/b"}], "without '/'"),
        ([STAGES[0], STAGES[0]], r"stages\[1\]: two stages are called 'star_graph'"),
    ],
)
def test_mistakes_are_named(stages: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        stream(stages)
