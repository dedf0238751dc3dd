"""Each rule of validation, and what must not trigger it."""

import pytest

from fst_jax.fast.validate import TrainingText, Validator, normalised
from fst_jax.tasks.task import Problem

WORDING = "Find the shortest route through the following graph and report it: "
PROBLEMS = [
    Problem("1", WORDING + "3,8 8,15 15,20 20,41 41,7 7,99", "3,8,15,20,41"),
    Problem("2", WORDING + "1,2 2,3 3,4 4,5 5,6 6,7", "yes"),
    Problem("3", "Who painted the ceiling of the chapel in the old town of Rome?", "42"),
    Problem("4", WORDING + "does the claim hold?", "not enough information"),
    Problem("5", "Is it so that the claim holds?", "not enough information"),
    Problem("6", "Which country has the longest coast?", "The Kingdom of Norway"),
    Problem("7", "Which is it?", "1,2,3"),
]
TRAINING = TrainingText(PROBLEMS)


def reason(text: str, *parents: str, known: tuple[str, ...] = ()) -> str | None:
    validator = Validator(lambda t: len(t.split()), ["<|im_end|>", ""], max_tokens=30)
    held = {normalised(k) for k in known}
    return validator.reason(text, parents or ("Answer.",), held, TRAINING)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty(text: str) -> None:
    assert reason(text) == "empty"


@pytest.mark.parametrize("text", ["Answer.", " Answer. \n", "Think  first.\nThen\tanswer."])
def test_identical_to_the_parent_or_a_known_prompt(text: str) -> None:
    assert reason(text, known=("Think first. Then answer.",)) == "identical"


def test_too_long() -> None:
    assert reason("word " * 30) is None
    assert reason("word " * 31) == "too long"


@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "<think>", "</think>", "<|IM_END|>", "< |im_\tend| >", "＜|im_end|＞",
     "<|im_\u200bend|>", "</ THINK >"],
)  # fmt: skip
def test_control_tokens(token: str) -> None:
    assert reason(f"Answer{token}.") == "control tokens"


@pytest.mark.parametrize("text", ["An\x1b[2Jswer", "Answer\0", "Answer\x85", "A\x7f"])
def test_control_characters(text: str) -> None:
    assert reason(text) == "control characters"


@pytest.mark.parametrize(
    "text",
    [
        r"For example \boxed{3,8,15,20,41}.",  # an answer
        "The path is 3 8 15 20 41, always.",  # … in other punctuation
        "Say the kingdom of NORWAY.",  # … in other letters
        "Who painted the ceiling of the chapel in?",  # eight words of a question
        "If asked 8,15 15,20 20,41 41,7 then stop.",
    ],
)
def test_quotes_training_answers(text: str) -> None:
    assert reason(text) == "quotes training answers"


@pytest.mark.parametrize(
    "text",
    [
        "Answer yes or no.",
        "There are at most 42 steps.",
        r"Write it like \boxed{1,2,3}.",
        "Say 'not enough information' if the claim is open.",  # a label: two problems share it
        "You will find the shortest route through the following graph and report it.",  # wording
        "Who painted the ceiling of the chapel?",  # seven words
        "Name the country: Norway.",
        "First:\tthink.\r\nThen: größer 😀\u200d.",  # tabs, line ends and joiners are text
    ],
)
def test_what_is_no_quotation(text: str) -> None:
    assert reason(text) is None


def test_what_the_parent_quotes_is_not_held_against_its_child() -> None:
    parent = r"For example \boxed{3,8,15,20,41}."
    assert reason(parent + " Be brief.", parent) is None
    assert reason(parent + " Or the Kingdom of Norway.", parent) == "quotes training answers"


def test_what_either_parent_of_a_merge_quotes_is_not_held_against_it() -> None:
    one, other = "Use 3,8,15,20,41.", "Not the Kingdom of Norway."
    assert reason(f"{one} {other}", one, other) is None
    assert reason(f"{one} {other}", one) == "quotes training answers"


def test_every_part_of_an_answer_is_private() -> None:
    titles = TrainingText([Problem("1", "Which pages?", "Foo Bar Quux; The Second Longer Title")])
    assert titles.quoted_in("Search for the second longer title.")
    assert titles.quoted_in("Search for Foo Bar Quux.") and not titles.quoted_in("Search for Foo.")


def test_the_same_problem_twice_is_still_one_problem() -> None:
    twice = TrainingText([PROBLEMS[5], PROBLEMS[5]])
    assert twice.quoted_in("the kingdom of norway")
    assert not TrainingText([]).quoted_in("anything at all")
