"""Packed log-probabilities, entropies and drift against one plain float64 forward a sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fst_jax.slow.drift import drift
from fst_jax.slow.logprobs import in_chunks, score_tokens
from fst_jax.slow.packing import Batch, pack
from tests.slow import tiny

SAMPLES = tiny.make_samples()


def targets(batch: Batch) -> list[tuple[slice, int, int]]:
    """Where each sample's targets are: rows hold the samples in order, two at a time."""
    places = []
    for i, sample in enumerate(SAMPLES):
        before = len(SAMPLES[i - 1].ids) if i % 2 else 0
        places.append((i // 2, before, before + len(sample.ids)))
    return places


@pytest.mark.parametrize(
    ("family", "remat"),
    [("llama", "none"), ("qwen2", "none"), ("qwen3", "none"), ("qwen3", "dots")],
)
def test_packed_scores_equal_a_plain_forward(family, remat):
    model = tiny.model(family, remat=remat)
    graphdef, params = nnx.split(model)
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=8)
    assert len(batch.tokens) == 1
    mesh = tiny.one_device()
    scores = jax.jit(lambda p, rows: score_tokens(nnx.merge(graphdef, p), rows, 50, mesh))(
        params, jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
    )
    weights = tiny.weights(params)
    for sample, (row, start, end) in zip(SAMPLES, targets(batch), strict=True):
        every = tiny.predictions(
            weights, model.config, sample.context_ids, sample.ids, sample.temperature
        )
        plain = every[np.arange(len(sample.ids)), sample.ids]
        assert plain.min() < -2  # far from uniform, so that a mistake would show
        np.testing.assert_allclose(scores.logprob[row, start:end], plain, atol=1e-5)
        entropy = -np.sum(np.exp(every) * every, axis=-1)
        np.testing.assert_allclose(scores.entropy[row, start:end], entropy, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 12, 14, 50])
def test_chunks_change_nothing(chunk):
    x, y = jnp.arange(28.0).reshape(2, 7, 2), jnp.arange(14).reshape(2, 7)

    def per_token(x, y):
        assert y.size <= max(chunk, 2)  # a target of each row is the least
        return jnp.sin(x).sum(axis=-1) * y, y

    total, same = in_chunks(per_token, (x, y), chunk, tiny.one_device())
    np.testing.assert_allclose(total, np.sin(x).sum(axis=-1) * y, rtol=1e-6)
    np.testing.assert_array_equal(same, y)


def test_drift_is_the_kl_over_the_whole_vocabulary():
    model = tiny.model()
    graphdef, base = nnx.split(model)
    params = tiny.perturbed(base, seed=1, scale=0.05)
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=4)
    kl, entropy = [], []
    for sample in SAMPLES:
        ours, theirs = (
            tiny.predictions(tiny.weights(p), model.config, sample.context_ids, sample.ids)
            for p in (params, base)
        )
        kl += np.sum(np.exp(ours) * (ours - theirs), axis=-1).tolist()
        entropy += (-np.sum(np.exp(ours) * ours, axis=-1)).tolist()
    options = {"graphdef": graphdef, "mesh": tiny.one_device(), "head_chunk": 50}
    measured = drift(params, base, batch, **options)
    assert np.mean(kl) > 0.01
    assert measured["kl_to_base"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert measured["entropy"] == pytest.approx(np.mean(entropy), rel=1e-5)
    assert drift(base, base, batch, **options)["kl_to_base"] == 0
