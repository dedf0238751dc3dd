"""One draw: the distribution it follows, and what top-k and top-p leave of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fst_jax.rollout.sampler import _invert, draw, keep_top

DRAWS = 20_000


def frequencies(logprobs: np.ndarray, seed: int = 0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    tokens = np.asarray(jax.jit(jax.vmap(draw, in_axes=(0, None)))(keys, jnp.asarray(logprobs)))
    assert tokens.min() >= 0 and tokens.max() < len(logprobs)
    return np.bincount(tokens, minlength=len(logprobs))


@pytest.mark.parametrize("size", [5, 256, 700])  # within, equal to and across blocks of 256
def test_draws_follow_the_distribution(size):
    rng = np.random.default_rng(size)
    logits = rng.normal(size=size) * 2
    logits[rng.permutation(size)[: size // 5]] = -np.inf
    probabilities = np.exp(logits) / np.exp(logits).sum()
    with np.errstate(divide="ignore"):
        counts = frequencies(np.log(probabilities).astype(np.float32))
    assert not counts[probabilities == 0].any()
    common = probabilities * DRAWS >= 8  # the rest in one cell
    observed = [*counts[common], counts[~common].sum()]
    expected = [*probabilities[common] * DRAWS, probabilities[~common].sum() * DRAWS]
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4


def test_draws_need_no_normalised_input_and_find_a_lone_token():
    lone = np.full(600, -np.inf, np.float32)
    lone[[0, 255, 256, 599]] = [-50.0, -51.0, -50.0, -51.0]
    counts = frequencies(lone)
    assert counts.sum() == counts[[0, 255, 256, 599]].sum() == DRAWS
    odds = np.exp([0.0, -1.0])
    expected = np.tile(odds / odds.sum() / 2, 2) * DRAWS
    assert stats.chisquare(counts[[0, 255, 256, 599]], expected).pvalue > 1e-4


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([256, 600]))
def test_nothing_without_mass_is_ever_drawn(seed, size):
    """Also where the uniform number falls on a boundary of the cumulative sum."""
    rng = np.random.default_rng(seed)
    mass = (rng.random(size) ** 4 * (rng.random(size) < 0.3)).astype(np.float32)
    mass[rng.integers(size)] = 0.5
    edges = np.asarray(jnp.cumsum(jnp.asarray(mass))) / np.cumsum(mass, dtype=np.float64)[-1]
    edges = edges.astype(np.float32)
    near = [np.nextafter(edges, 0, dtype=np.float32), edges, np.nextafter(edges, np.float32(2))]
    uniform = np.concatenate([*near, [0.0, 1 - 2**-24]]).clip(0, 1 - 2**-24).astype(np.float32)
    chosen = np.asarray(INVERT(jnp.asarray(mass), jnp.asarray(uniform)))
    assert np.all(mass[chosen] > 0)
    cumulative = np.cumsum(mass.astype(np.float64)) / mass.sum(dtype=np.float64)
    assert np.all(cumulative[chosen] >= uniform - 1e-6)
    assert np.all((cumulative - mass / mass.sum(dtype=np.float64))[chosen] <= uniform + 1e-6)


INVERT = jax.jit(jax.vmap(_invert, in_axes=(None, 0)))


def kept_by_oracle(logits: np.ndarray, p: float, k: int) -> np.ndarray:
    """A token stays if fewer than k tokens, of less than mass p together, are likelier.

    So tokens as likely as the last one that stays, stay too.
    """
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    kept = []
    for own in logits:
        likelier = logits > own
        enough = p < 1 and np.sum(probabilities[likelier]) >= p
        kept.append(not enough and not (k and likelier.sum() >= k))
    return np.array(kept)


KEEP = jax.jit(keep_top)


@settings(max_examples=60)
@given(
    st.lists(st.integers(-8, 3), min_size=17, max_size=17),
    st.sampled_from([0.01, 0.31, 0.577, 0.9001, 0.9777, 1.0]),
    st.integers(0, 20),
    st.sampled_from([0.0, 0.011, 0.3, 1.0]),
)
def test_truncation_against_the_definition_with_ties(values, p, k, least):
    logits = np.array(values, np.float32) * np.float32(0.7)
    logprobs = jnp.asarray(jax.nn.log_softmax(jnp.asarray(logits)))[None, None]
    options = (jnp.full((1, 1), value) for value in (p, k, least))
    allowed = np.asarray(KEEP(logprobs, *options))[0, 0]
    kept = np.isfinite(allowed)
    likely = np.exp(logits.astype(np.float64) - logits.max()) >= least
    np.testing.assert_array_equal(kept, kept_by_oracle(logits, p, k) & likely)
    np.testing.assert_array_equal(allowed[kept], np.asarray(logprobs)[0, 0][kept])
    assert kept[logits.argmax()]


def test_full_support_survives_beside_a_truncated_request():
    """Rounding in the cumulative mass must not cut the tail of a request with top_p = 1."""
    rng = np.random.default_rng(0)
    logprobs = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(64, 1, 5000)) * 4, jnp.float32))
    top_p = jnp.where(jnp.arange(64) % 2, 1.0, 0.9)[:, None]
    zeros = jnp.zeros((64, 1))
    allowed = np.asarray(KEEP(logprobs, top_p, zeros.astype(jnp.int32), zeros))
    assert np.isfinite(allowed[1::2]).all()
    assert np.isinf(allowed[::2]).any(axis=-1).all()
