"""Chat messages to token ids, and completions back to text.

The evolved prompt φ enters here and only here: as the system message, put
before the task's own system text where the task has one.  A conversation is
rendered once; afterwards only ids travel.

The chat template alone writes control tokens.  What a message says is text: should
a problem, a prompt or a client's message hold `<|im_end|>`, or what the tokenizer
normalises to it, it is encoded by its letters and ends nothing.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from fst_jax.errors import ModelError, TaskError
from fst_jax.tasks.task import Message

THINK_TAGS = ("<think>", "</think>")  # prompts that ask for reasoning speak of them
_SKELETON = ([{"role": "system", "content": "A"}, {"role": "user", "content": "A"}],
             [{"role": "user", "content": "A"}])  # fmt: skip
_SEAMS = "\ue000\ue001\ue002\ue003\uf8fe\uf8ff"  # for private use, and in no text
_UNSEEN = "\U000e0fff"  # a character that is not assigned
_LONGEST_REMEMBERED = 1 << 14  # characters
_REMEMBERED = 4096  # texts, each of which is looked through once


def with_prompt(messages: Sequence[Message], prompt: str) -> list[Message]:
    """Merge `prompt` into the system message; an empty prompt changes nothing."""
    messages = list(messages)
    if not prompt:
        return messages
    if messages and messages[0]["role"] == "system":
        merged = f"{prompt}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": merged}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


class Chat:
    """A tokenizer with its chat template and its stop ids."""

    def __init__(
        self,
        tokenizer: Any,
        template_arguments: dict[str, Any] | None = None,
        stop_ids: Sequence[int] = (),
    ):
        """`stop_ids` are those of generation_config.json; the tokenizer's eos is added."""
        self.tokenizer = tokenizer
        self.template_arguments = dict(template_arguments or {})
        self._pieces = lru_cache(_REMEMBERED)(self._divide)
        eos = tokenizer.eos_token_id
        self.stop_ids = tuple(sorted({*stop_ids, *([] if eos is None else [eos])}))
        if not self.stop_ids:
            raise ModelError(
                "the model folder names no end-of-sequence token: add eos_token to "
                "tokenizer_config.json or eos_token_id to generation_config.json"
            )

    def encode(self, messages: Sequence[Message], prompt: str = "", **arguments: Any) -> list[int]:
        """Token ids of the conversation under `prompt`, ready for the answer.

        `arguments` are more of the chat template's.

        Raises:
          ModelError: the template cannot be rendered.
          TaskError: a message holds a control token that has no letters.
        """
        messages = with_prompt(messages, prompt)
        written = [text for message in messages for text in message.values()]
        seam = next(s for s in _SEAMS if not any(s in text for text in written))
        divided = [
            {name: seam.join(self._pieces_of(text)) for name, text in message.items()}
            for message in messages
        ]
        parts = self._rendered(divided, arguments).split(seam)
        return [id for part in parts for id in self._ids(part)]

    def holds_control(self, text: str) -> bool:
        """Whether a text, encoded as it stands, would have a control token in it."""
        return not self.control_ids.isdisjoint(self._ids(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, control tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def count(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self._ids(text))

    @cached_property
    def default_prompt_tokens(self) -> int:
        """Tokens of the system message that the template puts where there is none; 0: it does not.

        An empty prompt leaves it there.
        """
        asked = [{"role": "user", "content": "A"}]
        return max(0, len(self.encode(asked)) - len(self.encode(asked, "A")) + 1)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The tokens that only the template and the model may write.

        They are those that the tokenizer calls special, those that end an answer, and the added
        ones that the template writes, whatever they are called.
        """
        added = self.tokenizer.added_tokens_decoder
        special = {id for id, token in added.items() if token.special}
        special |= {*self.tokenizer.all_special_ids, *self.stop_ids}
        for messages in _SKELETON:
            try:
                found = self._ids(self._rendered(messages, {}))
            except ModelError:  # some templates know no system message
                continue
            special |= {i for i in found if i in added and added[i].content not in THINK_TAGS}
            break
        # The unknown token is in any text with an unknown character, if such there be.
        unknown = {self.tokenizer.unk_token_id} & {*self._ids(_UNSEEN)}
        return frozenset(special - unknown)

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts that the tokenizer reads as control tokens; no prompt may hold one."""
        return tuple(sorted({self.tokenizer.decode([id]) for id in self.control_ids} - {""}))

    @cached_property
    def reserved_arguments(self) -> frozenset[str]:
        """Names that are not the template's but the tokenizer's, such as chat_template."""
        parameters = inspect.signature(self.tokenizer.apply_chat_template).parameters
        return frozenset(n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _rendered(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        options = {**self.template_arguments, **arguments}
        options |= {"tokenize": False, "add_generation_prompt": True}
        try:
            text: str = self.tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # templates are programs, and raise what they like
            reason = f"{type(error).__name__}: {error!s:.300}"
            raise ModelError(
                f"the model's chat template cannot be rendered ({reason}): "
                "repair chat_template.jinja, or the arguments in model.chat_template"
            ) from error
        return text

    def _pieces_of(self, text: str) -> tuple[str, ...]:
        return self._pieces(text) if len(text) <= _LONGEST_REMEMBERED else self._divide(text)

    def _divide(self, text: str) -> tuple[str, ...]:
        """The text in pieces of which none holds a control token: such tokens are cut in two."""
        pieces, waiting = [], [text]
        while waiting:
            piece = waiting.pop()
            spans = self._control_spans(piece)
            if not spans:
                pieces.append(piece)
                continue
            cuts = [0, *((start + end) // 2 for start, end in spans), len(piece)]
            parts = [piece[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
            if len(parts) == 1:
                token = piece[slice(*spans[0])]
                raise TaskError(
                    f"a message holds the control token {token!r:.80}, which cannot be written as "
                    "plain text: remove it from the problem or the prompt"
                )
            waiting += reversed(parts)
        return tuple(pieces)

    def _control_spans(self, text: str) -> list[tuple[int, int]]:
        """Where the control tokens of a text stand, from first to last."""
        if not self.holds_control(text):
            return []
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [tuple(span) for id, span in pairs if id in self.control_ids]
