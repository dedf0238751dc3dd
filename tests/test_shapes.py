"""Bucketed lengths: enough room, little waste, few values."""

from hypothesis import given
from hypothesis import strategies as st

from fst_jax.shapes import bucket

LENGTHS = st.integers(0, 200_000)
QUANTA = st.sampled_from([4, 32, 128])


@given(LENGTHS, QUANTA)
def test_holds_the_length_with_little_waste(length, quantum):
    size = bucket(length, quantum)
    assert size >= length
    assert size % (quantum // 2) == 0
    assert size == quantum or size < 1.5 * length


@given(LENGTHS, LENGTHS, QUANTA)
def test_grows_with_the_length_and_is_its_own_bucket(a, b, quantum):
    assert bucket(min(a, b), quantum) <= bucket(max(a, b), quantum)
    assert bucket(bucket(a, quantum), quantum) == bucket(a, quantum)


def test_the_list_is_short():
    sizes = {bucket(length) for length in range(1, 8193)}
    powers = [32 * 2**i for i in range(9)]
    assert sizes == {*powers, *(size * 3 // 2 for size in powers[:-1])}
