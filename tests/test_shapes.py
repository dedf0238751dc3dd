"""Bucketed lengths: enough room, little waste, few values."""

from hypothesis import given
from hypothesis import strategies as st

from fst_jax.shapes import bucket

LENGTHS = st.integers(0, 200_000)
QUANTA = st.sampled_from([4, 32, 128])
PARTS = st.sampled_from([1, 2, 4])


@given(LENGTHS, QUANTA, PARTS)
def test_holds_the_length_with_little_waste(length, quantum, parts):
    size = bucket(length, quantum, parts)
    assert size >= length
    assert size % (quantum // parts) == 0
    assert size == quantum or size < (1 + 1 / parts) * length


@given(LENGTHS, LENGTHS, QUANTA, PARTS)
def test_grows_with_the_length_and_is_its_own_bucket(a, b, quantum, parts):
    sizes = [bucket(length, quantum, parts) for length in sorted((a, b))]
    assert sizes[0] <= sizes[1]
    assert [bucket(size, quantum, parts) for size in sizes] == sizes


def test_the_list_is_short():
    sizes = {bucket(length) for length in range(1, 8193)}
    powers = [32 * 2**i for i in range(9)]
    assert sizes == {*powers, *(size * 3 // 2 for size in powers[:-1])}
