"""KL in the reward: what each rollout pays, against float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fst_jax.config import SlowSettings
from fst_jax.slow.packing import pack
from fst_jax.slow.penalty import log_ratios
from tests.slow import tiny


@pytest.mark.parametrize(("per_row", "rows"), [(1, 3), (2, 2)])
def test_each_sample_pays_for_all_of_its_tokens(per_row, rows):
    samples = tiny.make_samples()
    graphdef, base = nnx.split(tiny.model())
    params = tiny.perturbed(base, seed=1, scale=0.05)
    settings = SlowSettings(head_chunk=64)
    where = {"graphdef": graphdef, "settings": settings, "mesh": tiny.one_device()}
    found = log_ratios(params, base, pack(samples, per_row, rows), **where)
    ours, theirs = tiny.weights(params), tiny.weights(base)
    expected = [
        np.sum(
            tiny.logprobs(ours, tiny.config(), s.context_ids, s.ids, s.temperature)
            - tiny.logprobs(theirs, tiny.config(), s.context_ids, s.ids, s.temperature)
        )
        for s in samples
    ]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-3)
    same = log_ratios(base, base, pack(samples, per_row, rows), **where)
    np.testing.assert_allclose(same, jnp.zeros(len(samples)), atol=1e-6)
