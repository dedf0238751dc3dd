"""From token ids back to what clients read."""

from typing import Any

from fst_jax.rollout.server.questions import Prompt
from fst_jax.rollout.server.service import Answer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # decoding half a character gives this


def text_of(tokenizer: Any, prompt: Prompt, answer: Answer) -> str:
    """The text of an answer as far as it has come, without what ended it unless that was asked.

    Half a character at the end waits for its other half while the answer grows.
    """
    ids, finish = answer.ids, answer.finish
    matched = finish.matched if finish else None
    if isinstance(matched, int) and not prompt.show_stop:
        ids = ids[:-1]
    text: str = tokenizer.decode(ids, skip_special_tokens=prompt.skip_special)
    if isinstance(matched, str):
        at = text.find(matched)
        if at >= 0:
            text = text[: at + len(matched) * prompt.show_stop]
    elif finish is None:
        text = text.rstrip(_UNFINISHED)
        # What may be the beginning of a stop text is not shown yet.
        held = max(
            (n for stop in prompt.stop for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        text = text[: len(text) - held] if held else text
    return text
