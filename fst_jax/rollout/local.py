"""The engine that samples in the learner's own process and on its mesh.

Weights are shared with the learner, not copied: a sync is an assignment.  Where the learner's are
of another dtype than the computation, they are cast, into the memory of those cast before.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fst_jax.interrupt import check
from fst_jax.models.decoder import Decoder
from fst_jax.rollout.batching import Batcher
from fst_jax.rollout.engine import Capabilities, Completion, Request, check_fits, same_arrays
from fst_jax.rollout.sample import Sample
from fst_jax.watchdog import beat


@partial(jax.jit, donate_argnums=1, keep_unused=True)
def _cast(params: Any, old: Any) -> Any:
    """`params` in the dtypes of `old`, whose memory they take."""
    return jax.tree.map(lambda x, like: x.astype(like.dtype), params, old)


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
        self._source: Any = None  # what `_copy` was cast from
        self._copy: Any = None
        self.update_weights(self.batcher.params, version=0)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(update_weights=True, max_context=self._max_context)

    def update_weights(self, params: Any, version: int) -> None:
        """Sample from `params` from now on (device arrays, not copied)."""
        if any(x.dtype != self._dtype for x in jax.tree.leaves(params)):
            params = self._in_compute_dtype(params)
        self.batcher.set_weights(params, version)

    def _in_compute_dtype(self, params: Any) -> Any:
        if self._copy is None:
            self._copy = jax.tree.map(lambda x: x.astype(self._dtype), params)
        if not same_arrays(self._source, params):
            self._source, self._copy = params, _cast(params, self._copy)
        return self._copy

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Sample every request; all of them share the slots.

        What comes of a call depends on its requests and the weights alone, to the last bit: the
        grid begins anew, whatever was sampled before, so that a resumed run samples the same.

        Raises:
          ConfigError: prompt and completion do not fit the model's context.
        """
        check_fits(requests, self._max_context)
        groups = [[Sample(each, seed) for seed in each.sample_seeds] for each in requests]
        self.batcher.submit(sample for group in groups for sample in group)
        try:
            while self.batcher.advance():
                beat()
                check(together=True)
        finally:
            self.batcher.abandon()
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
