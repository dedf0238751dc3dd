"""Scores of answers, one by one and many at a time."""

import threading
import time

import pytest

from fst_jax.errors import TaskError
from fst_jax.tasks.judge import judge, judge_all
from fst_jax.tasks.task import Problem
from tests.helpers import Echo


@pytest.mark.parametrize("reward", [-0.1, 1.1, float("nan")])
def test_rewards_outside_the_unit_interval_are_refused(reward):
    with pytest.raises(TaskError, match="rewards must be in"):
        judge(Echo(), Problem("p", "q", "a", {"reward": reward}), "text")


def test_what_a_task_raises_names_task_and_problem():
    with pytest.raises(TaskError, match="echo raised in score.* 'p': KeyError"):
        judge(Echo(), Problem("p", "q", "a"), "text")


def test_many_answers_keep_their_order_and_are_judged_at_a_time():
    running, most = set(), []

    class Slow(Echo):
        def score(self, problem, text):
            running.add(threading.get_ident())
            most.append(len(running))
            time.sleep(0.01 * (3 - int(text) % 3))
            return super().score(problem, text)

    problems = [Problem(f"p{i}", "q", "a", {"reward": i / 20}) for i in range(20)]
    scores = judge_all(Slow(), [(problem, str(i)) for i, problem in enumerate(problems)])
    assert [score.reward for score in scores] == [i / 20 for i in range(20)]
    assert [score.feedback for score in scores] == [str(i) for i in range(20)]
    assert max(most) > 1
    assert judge_all(Slow(), []) == []
    with pytest.raises(TaskError, match="'p3'"):
        judge_all(Slow(), [(p, "0") for p in problems[:3]] + [(Problem("p3", "q", "a"), "0")])
