"""Whether a served model and the learner agree: the same tokens, scored on both sides.

After a sync a few fixed contexts are continued with fixed seeds; the server says with which
log-probabilities, at the training temperature, and the learner computes them anew.  A stale
prefix cache, other weights or another temperature shows as tenths of a nat and more, where
float32 and bfloat16 arithmetic differ by hundredths.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fst_jax.errors import EngineError
from fst_jax.rollout.engine import Completion, Engine, Request, same_arrays

# (parameters, contexts, completions) -> mean |log-probability there - here| over the tokens
Gap = Callable[[Any, Sequence[Request], Sequence[Completion]], float]
SAMPLES, TOKENS = 16, 32  # of each check


class Parity:
    """The check of one run."""

    def __init__(self, engine: Engine, asked: Sequence[Request], gap: Gap, most: float) -> None:
        """`asked` are continued once each; above `most` nats of mean difference a run stops."""
        self._engine, self._asked, self._gap, self._most = engine, asked, gap, most
        self._checked: Any = None
        self.last = 0.0  # mean difference found by the last check, in nats

    def __call__(self, params: Any) -> None:
        """Check, if the weights are other ones than at the last check.

        Raises:
          EngineError: it is too large.
        """
        if same_arrays(params, self._checked):
            return
        answers = [only for (only,) in self._engine.generate(self._asked)]
        self.last, self._checked = self._gap(params, self._asked, answers), params
        if not self.last <= self._most:
            raise EngineError(
                f"the served model and the learner disagree by {self.last:.3g} nats a token, more "
                f"than rollout.max_mismatch = {self._most:.3g}: the server has other weights, "
                "another model or a stale cache; nothing was trained on this"
            )
