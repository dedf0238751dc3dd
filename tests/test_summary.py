"""The table of quadrants at the end of a run."""

from typing import Any

from fst_jax.summary import quadrants


def evaluation(step: int, weights: str, context: str, mean: float) -> dict[str, Any]:
    return {
        "step": step, "weights": weights, "context": context, "mean_at_k": mean, "k": 4, "n": 128
    }  # fmt: skip


def test_the_newest_evaluation_of_each_quadrant_is_shown() -> None:
    lines = quadrants(
        [
            evaluation(0, "base", "seed", 0.1),
            evaluation(3, "trained", "seed", 0.2),
            evaluation(6, "base", "pool", 0.3),
            evaluation(6, "trained", "seed", 0.45),
            evaluation(6, "trained", "pool", 0.5),
        ]
    )
    assert "mean@4 over 32 problems, 128 rollouts" in lines[0]
    assert lines[2].split() == ["base", "weights", "0.100", "0.300"]
    assert lines[3].split() == ["trained", "weights", "0.450", "0.500"]


def test_a_student_without_a_prompt_has_a_column() -> None:
    lines = quadrants(
        [
            evaluation(0, "base", "none", 0.1),
            evaluation(0, "base", "seed", 0.2),
            evaluation(6, "trained", "none", 0.4),
        ]
    )
    assert lines[1].split() == ["no", "prompt", "seed", "prompt", "evolved", "prompts"]
    assert lines[2].split() == ["base", "weights", "0.100", "0.200", "–"]
    assert lines[3].split() == ["trained", "weights", "0.400", "–", "–"]


def test_what_was_not_evaluated_is_left_open() -> None:
    lines = quadrants([evaluation(0, "base", "seed", 0.1), evaluation(6, "trained", "seed", 0.2)])
    assert lines[2].split() == ["base", "weights", "0.100", "–"]
    assert lines[3].split() == ["trained", "weights", "0.200", "–"]
    assert len(quadrants([evaluation(0, "base", "seed", 0.1)])) == 3  # nothing was trained
