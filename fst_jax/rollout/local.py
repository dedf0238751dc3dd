"""The engine that samples in the learner's own process and on its mesh.

Weights are shared with the learner, not copied: a sync is an assignment (and a
cast, where the compute dtype is not float32).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fst_jax.models.decoder import Decoder
from fst_jax.rollout.batching import Batcher, Sample
from fst_jax.rollout.engine import Capabilities, Completion, Request, check_fits


@partial(jax.jit, static_argnames="dtype")
def _cast(params: Any, dtype: np.dtype) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), params)


class LocalEngine:
    """`Engine` over the batcher.

    Holds the parameters of the newest `update_weights`; in a multi-host run
    every process calls `generate` with the same requests.
    """

    def __init__(self, model: Decoder, mesh: Mesh, batch_size: int):
        """`batch_size` is the number of sequences decoded at once."""
        self.batcher = Batcher(model, mesh, batch_size)
        self._max_context = model.config.max_position_embeddings
        self._dtype = model.dtype
        self.update_weights(self.batcher.params, version=0)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(update_weights=True, max_context=self._max_context)

    def update_weights(self, params: Any, version: int) -> None:
        """Sample from `params` from now on (device arrays, not copied)."""
        same = all(x.dtype == self._dtype for x in jax.tree.leaves(params))
        self.batcher.set_weights(params if same else _cast(params, self._dtype), version)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Sample every request; all of them share the slots.

        Raises:
          ConfigError: prompt and completion do not fit the model's context.
        """
        check_fits(requests, self._max_context)
        groups = [[Sample(each, seed) for seed in each.sample_seeds] for each in requests]
        self.batcher.submit(sample for group in groups for sample in group)
        while self.batcher.advance():
            pass
        return [[_completion(sample) for sample in group] for group in groups]


def _completion(sample: Sample) -> Completion:
    assert sample.finish_reason in ("stop", "length")
    ((version, _),) = sample.spans
    return Completion(
        ids=np.array(sample.ids, np.int32),
        logprobs=np.array(sample.logprobs, np.float32),
        finish_reason=sample.finish_reason,
        temperature=sample.request.temperature,
        weight_version=version,
    )
