"""Chat messages to token ids, and completions back to text.

The evolved prompt φ enters here and only here: as the system message, put
before the task's own system text where the task has one.  A conversation is
rendered once; afterwards only ids travel.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from fst_jax.errors import ModelError
from fst_jax.tasks.task import Message


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
        eos = tokenizer.eos_token_id
        self.stop_ids = tuple(sorted({*stop_ids, *([] if eos is None else [eos])}))
        if not self.stop_ids:
            raise ModelError(
                "the model folder names no end-of-sequence token: add eos_token to "
                "tokenizer_config.json or eos_token_id to generation_config.json"
            )

    def encode(self, messages: Sequence[Message], prompt: str = "") -> list[int]:
        """Token ids of the conversation under `prompt`, ready for the answer."""
        options = {**self.template_arguments, "tokenize": False, "add_generation_prompt": True}
        try:
            text = self.tokenizer.apply_chat_template(with_prompt(messages, prompt), **options)
        except (TemplateError, TypeError) as error:
            raise ModelError(
                f"the model's chat template cannot be rendered ({type(error).__name__}: {error}): "
                "repair chat_template.jinja, or the arguments in model.chat_template"
            ) from error
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, control tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def count(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def default_prompt_tokens(self) -> int:
        """Tokens of the system message that the template puts where there is none; 0: it does not.

        An empty prompt leaves it there.
        """
        asked = [{"role": "user", "content": "A"}]
        return max(0, len(self.encode(asked)) - len(self.encode(asked, "A")) + 1)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts that the tokenizer reads as control tokens; no prompt may hold one."""
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(sorted({token.content for token in added if token.special}))
