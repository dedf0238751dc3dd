"""One sample on its way through the engine, from its wait for a slot to its end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fst_jax.rollout.engine import Request


@dataclass(eq=False)
class Sample:
    """One continuation of a request, from its wait for a slot to its end."""

    request: Request
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[Any, int]] = field(default_factory=list)  # (weight version, first token)
    finish_reason: Literal["stop", "length", "abort"] | None = None
    cached: int = 0  # tokens of the prompt that were not computed for this sample
    before: int = 0  # tokens that it had when it came into its slot
    shown: int = 0  # tokens that a client has been sent
    drawn: Any = None  # version of the weights that gave its next logits, if they are gone

    @property
    def context(self) -> tuple[int, ...]:
        """What its row must hold; retracted samples come back with what they have generated."""
        return (*self.request.prompt_ids, *self.ids[: self.before])

    @property
    def left(self) -> int:
        return self.request.max_new_tokens - len(self.ids)

    def extend(self, ids: Sequence[int], logprobs: Sequence[float], version: Any) -> None:
        """Take in tokens that weights of this version generated, after the one that others drew."""
        versions = [version if self.drawn is None else self.drawn, version]  # the first's, others'
        for start, own in enumerate(versions[: len(ids)], start=len(self.ids)):
            if not self.spans or self.spans[-1][0] != own:
                self.spans.append((own, start))
        if ids:
            self.drawn = None
        self.ids += ids
        self.logprobs += logprobs
