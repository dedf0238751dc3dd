"""From token ids back to what clients read."""

from typing import Any

from fst_jax.rollout.server.questions import Prompt
from fst_jax.rollout.server.service import Answer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # decoding half a character gives this


def text_of(tokenizer: Any, prompt: Prompt, answer: Answer) -> str:
    """The text of an answer that has ended, without what ended it unless that was asked."""
    ids = answer.ids
    matched = answer.finish.matched if answer.finish else None
    if isinstance(matched, int) and not prompt.show_stop:
        ids = ids[:-1]
    text: str = tokenizer.decode(ids, skip_special_tokens=prompt.skip_special)
    if isinstance(matched, str) and (at := text.find(matched)) >= 0:
        text = text[: at + len(matched) * prompt.show_stop]
    return text


class Transcript:
    """The text of one answer while it grows: each read decodes the new tokens alone.

    A tokenizer may write a token differently at the start of a text than within it, so new tokens
    are decoded behind those of the read before, whose text is then taken away.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        self._text = ""  # of the first `_settled` tokens
        self._settled = self._before = 0  # those from `_before` on are what new ones follow

    def read(self, answer: Answer) -> str:
        """The text so far.

        Half a character at the end waits for its other half, and what may be the beginning of a
        stop text for what follows.
        """
        if answer.finish:
            return text_of(self._tokenizer, self._prompt, answer)
        behind = self._decode(answer.ids[self._before : self._settled])
        whole = self._decode(answer.ids[self._before :])
        text = self._text + whole[len(behind) :]
        if len(whole) > len(behind) and not whole.endswith(_UNFINISHED):
            self._text, self._before, self._settled = text, self._settled, len(answer.ids)
        text = text.rstrip(_UNFINISHED)
        starts = (stop[:n] for stop in self._prompt.stop for n in range(1, len(stop)))
        held = max((len(start) for start in starts if text.endswith(start)), default=0)
        return text[: len(text) - held] if held else text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._prompt.skip_special)
        return text
