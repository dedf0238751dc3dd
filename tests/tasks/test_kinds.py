"""The form of answers, from a sample."""

import pytest

from fst_jax.tasks.kinds import kind_of


@pytest.mark.parametrize(
    ("answers", "name", "fits", "unfit"),
    [
        (["Yes", "No"] * 25, "choice", "yes", "Yes, it does"),
        (["0", "1"] * 25, "choice", "1", "2"),
        (["Yes", "No"], "text", "maybe", "x" * 99),
        (["1", "-20", "3"], "whole number", "+4", "4.5"),
        (["1", "2.5", "1e-05"], "number", "3", "3 m"),
        (["[1]", '{"a": 2}', "3"], "JSON", "[]", "[1"),
        (["1 2\n3 4", "5"], "several lines", "7", "x" * 99),
        (["", ""], "text", "x" * 99, None),
    ],
)
def test_kinds(answers, name, fits, unfit):
    kind = kind_of(answers)
    assert kind.name == name and kind.fits(fits)
    assert unfit is None or not kind.fits(unfit)
    assert len(set(kind.advice)) >= 2


def test_a_choice_lists_its_values():
    assert all("No, Yes" in line for line in kind_of(["Yes", "No"] * 25).advice)
