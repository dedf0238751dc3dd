"""The star graph against its definition: a brute-force look at every property."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_jax.errors import TaskError
from fst_jax.tasks.star_graph import ADVICE, StarGraph


def parse(question):
    edges, ask = question.split("\n")
    pairs = [tuple(map(int, e.split(","))) for e in edges.removeprefix("Edges: ").split(" ")]
    words = ask.rstrip(".").split(" ")
    return pairs, int(words[-3]), int(words[-1])


def all_paths(edges, source, goal):
    """Every simple path, by exhaustive search."""
    found, stack = [], [[source]]
    while stack:
        path = stack.pop()
        if path[-1] == goal:
            found.append(path)
        stack += [[*path, v] for u, v in edges if u == path[-1] and v not in path]
    return found


shapes = st.tuples(st.integers(1, 8), st.integers(2, 8), st.integers(0, 60)).map(
    lambda s: (s[0], s[1], s[0] * (s[1] - 1) + 1 + s[2])
)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 2**31), st.integers(0, 9))
def test_it_is_the_papers_graph(shape, seed, position):
    d, p, n = shape
    task = StarGraph(d, p, n, train_size=10, test_size=1, seed=seed)
    problem = task._draw(position)
    edges, source, goal = parse(problem.question)
    nodes = {node for edge in edges for node in edge}
    assert len(nodes) == d * (p - 1) + 1 and nodes <= set(range(n))
    assert len(edges) == len(set(edges)) == d * (p - 1)
    assert sum(u == source for u, _ in edges) == d
    (path,) = all_paths(edges, source, goal)
    assert len(path) == p and ",".join(map(str, path)) == problem.answer
    leaves = nodes - {u for u, _ in edges}
    assert len(leaves) == d and goal in leaves
    assert all(len(all_paths(edges, source, leaf)[0]) == p for leaf in leaves)
    assert task.score(problem, rf"\boxed{{{problem.answer}}}").reward == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.randoms(use_true_random=False))
def test_any_other_path_earns_nothing(position, rng: random.Random):
    task = StarGraph(4, 4, 30, train_size=10, test_size=1)
    problem = task._draw(position)
    path = problem.answer.split(",")
    edit = rng.choice(["drop", "add", "swap", "shuffle"])
    if edit == "drop":
        del path[rng.randrange(len(path))]
    elif edit == "add":
        path.insert(rng.randrange(len(path) + 1), str(rng.randrange(30)))
    elif edit == "swap":
        path[rng.randrange(len(path))] = str(rng.randrange(30))
    else:
        rng.shuffle(path)
    score = task.score(problem, rf"\boxed{{{','.join(path)}}}")
    assert score.reward == float(",".join(path) == problem.answer)


def test_defaults_are_the_papers():
    task = StarGraph()
    problem = task.problems("train")[0]
    edges, _, _ = parse(problem.question)
    assert len(edges) == 25 * 19 and len(problem.answer.split(",")) == 20
    assert len(task.problems("train")) == 10_000 and len(task.problems("test")) == 200


def test_same_seed_same_problems_and_another_seed_others():
    first, again, other = (StarGraph(3, 4, 40, seed=seed) for seed in (7, 7, 8))
    for split in ("train", "test"):
        assert first.problems(split)[5].question == again.problems(split)[5].question
        assert first.problems(split)[5].question != other.problems(split)[5].question


def test_splits_are_disjoint_even_where_problems_are_few():
    task = StarGraph(2, 2, 4, train_size=200, test_size=8)
    key = lambda p: (p.answer, frozenset(p.question.split("\n")[0].split(" ")))  # noqa: E731
    test = [key(p) for p in task.problems("test")]
    assert len(set(test)) == 8
    assert not {key(p) for p in task.problems("train")} & set(test)
    ids = [p.id for split in ("train", "test") for p in task.problems(split)]
    assert len(ids) == len(set(ids))
    with pytest.raises(TaskError, match="lower task.options.test_size"):
        StarGraph(2, 2, 3, test_size=50).problems("test")[0]


def test_problems_are_a_sequence():
    train = StarGraph(3, 3, 20, train_size=5, test_size=2).problems("train")
    assert train[-1] == train[4] and train[1:3] == [train[1], train[2]] and len(list(train)) == 5
    with pytest.raises(IndexError):
        train[5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 25, "path_nodes": 21, "node_range": 500}, "need 501 different nodes"),
        ({"degree": 0}, "degree must be at least 1"),
        ({"path_nodes": 1}, "path_nodes at least 2"),
        ({"train_size": 0}, "train_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(TaskError, match=message):
        StarGraph(**options)


def test_every_category_says_what_went_wrong():
    task = StarGraph(3, 4, 40, train_size=10, test_size=1)
    problem = task.problems("train")[0]
    edges, source, goal = parse(problem.question)
    gold = [int(node) for node in problem.answer.split(",")]
    decoy_leaf = next(v for _, v in edges if v != goal and v not in {u for u, _ in edges})
    (decoy,) = all_paths(edges, source, decoy_leaf)

    def box(path):
        return rf"\boxed{{{','.join(map(str, path))}}}"

    cases = {
        "correct": (box(gold), "right"),
        "no boxed answer": (problem.answer, "no complete"),
        "not a path": (r"\boxed{go left}", "separated by commas"),
        "wrong start": (box(gold[1:]), f"starts at {gold[1]}"),
        "repeated node": (box([source, gold[1], source]), f"Node {source}"),
        "wrong end": (box([source, goal, gold[1]]), f"the goal is {goal}"),
        "not an edge": (
            box([gold[0], gold[1], goal]),
            f"Step 2: {gold[1]}→{goal} is not an edge; from {gold[1]} you can go to {gold[2]}.",
        ),
        "stopped early": (box(gold[:2]), f"can go to {gold[2]}"),
        "decoy arm": (box(decoy), f"Step 1: {source}→{decoy[1]} leads into an arm"),
    }
    assert set(cases) == set(ADVICE)
    for category, (text, detail) in cases.items():
        score = task.score(problem, text)
        advice, *rest = score.feedback.split("\n")
        assert score.category == category and advice in ADVICE[category]
        assert detail in "\n".join(rest)
        assert score.reward == float(category == "correct")


def test_advice_holds_for_any_problem_and_has_several_wordings():
    task = StarGraph(3, 4, 40, train_size=40, test_size=1)
    lines = {task.score(p, "?").feedback.split("\n")[0] for p in task.problems("train")}
    assert lines == set(ADVICE["no boxed answer"])


@pytest.mark.parametrize(
    "text",
    ["", r"\boxed{", r"\boxed{}", r"\boxed{,}", r"\boxed{-1,2}", r"\boxed{²,3}", "\ud800"]
    + [r"\boxed{" + "9" * 9999 + "}", r"\boxed{" * 500, "<think> \\boxed{1}"],
)
def test_no_answer_makes_it_raise(text):
    task = StarGraph(2, 3, 10, train_size=1, test_size=1)
    assert task.score(task.problems("train")[0], text).reward == 0.0


def test_the_last_box_after_thinking_counts_and_spaces_do_not():
    task = StarGraph(2, 3, 10, train_size=1, test_size=1)
    problem = task.problems("train")[0]
    spaced = problem.answer.replace(",", " , ")
    text = rf"<think>\boxed{{1,2}}</think> \boxed{{3}} no: \boxed{{ {spaced} }}"
    assert task.score(problem, text).reward == 1.0
