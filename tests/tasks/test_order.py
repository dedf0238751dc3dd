"""The stream of problems: every problem once a pass, any step without history."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.errors import TaskError
from fst_jax.tasks.order import ProblemOrder, StagedOrder
from fst_jax.tasks.task import Problem


def problems(count: int) -> list[Problem]:
    return [Problem(str(i), "question", "answer") for i in range(count)]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_each_pass_holds_every_problem_once(count: int, per_step: int, seed: int) -> None:
    order = ProblemOrder(problems(count), per_step, seed)
    steps = -(-2 * count // per_step)
    seen = [problem.id for step in range(steps) for problem in order.minibatch(step)]
    for start in (0, count):
        assert sorted(seen[start : start + count]) == sorted(str(i) for i in range(count))


@given(st.integers(1, 40), st.integers(1, 12), st.lists(st.integers(0, 30), max_size=8))
def test_a_step_does_not_depend_on_history(count: int, per_step: int, steps: list[int]) -> None:
    used = ProblemOrder(problems(count), per_step, seed=3)
    for step in steps:
        fresh = ProblemOrder(problems(count), per_step, seed=3)
        assert used.minibatch(step) == fresh.minibatch(step)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 9), st.integers(1, 6))
def test_look_ahead_is_what_comes(count: int, per_step: int, step: int, steps: int) -> None:
    order = ProblemOrder(problems(count), per_step, seed=1)
    ahead = order.look_ahead(step, steps)
    coming = [problem for t in range(step, step + steps) for problem in order.minibatch(t)]
    assert len({problem.id for problem in ahead}) == len(ahead)
    assert {problem.id for problem in ahead} == {problem.id for problem in coming}
    assert ahead[0] == coming[0]


def test_seeds_differ() -> None:
    first, second = (ProblemOrder(problems(50), 50, seed) for seed in (0, 1))
    assert first.minibatch(0) != second.minibatch(0)
    assert first.minibatch(0) != first.minibatch(1)  # the next pass is shuffled anew


def test_problems_that_do_not_fit_are_passed_over() -> None:
    even = ProblemOrder(problems(20), 10, seed=2, usable=lambda problem: int(problem.id) % 2 == 0)
    seen = [problem.id for step in range(2) for problem in even.minibatch(step)]
    assert {int(id) % 2 for id in seen} == {0} and len(seen) == 20
    with pytest.raises(TaskError, match="fits into"):
        ProblemOrder(problems(3), 1, seed=2, usable=lambda problem: False).minibatch(0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 30))
def test_stages_take_turns_and_no_cycle_crosses_a_border(
    lengths: list[int], cycle: int, step: int
) -> None:
    orders = [
        ProblemOrder([Problem(f"{stage}/{i}", "", "") for i in range(7)], 3, seed=0)
        for stage in range(len(lengths))
    ]
    staged = StagedOrder(orders, lengths, [f"stage {i}" for i in range(len(orders))])
    borders = [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
    stage = sum(border <= step for border in borders)
    within = step - ([0, *borders])[stage]
    assert staged.minibatch(step) == orders[stage].minibatch(within)
    assert {p.id[0] for p in staged.look_ahead(step, cycle)} == {str(stage)}
    assert staged.begins_cycle(step, cycle) == (within % cycle == 0)
    end = min([step + cycle, *(border for border in borders if border > step)])
    coming = {p.id for t in range(step, end) for p in staged.minibatch(t)}
    assert {p.id for p in staged.look_ahead(step, cycle)} == coming
