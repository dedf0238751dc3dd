"""How problems reach a model as tokens.

A task knows problems, a chat format knows tokens; an exam is the two together,
with the limit on a context's length.
"""

from dataclasses import dataclass

from fst_jax.errors import ConfigError, TaskError
from fst_jax.rollout.chat import Chat
from fst_jax.tasks.judge import raised
from fst_jax.tasks.task import Message, Problem, Task

_SEAM = 4  # tokens by which a text's count may change where it meets the template


@dataclass(frozen=True)
class Exam:
    """A task in a model's chat format."""

    task: Task
    chat: Chat
    max_prompt_tokens: int  # longest context, system prompt included
    longest_prompt: int  # tokens of the longest φ that evolution may propose; 0 without it

    def context(self, problem: Problem, prompt: str) -> list[int]:
        """Token ids of a problem under a prompt.

        Raises:
          ConfigError: they are more than `max_prompt_tokens`.
          TaskError: the task raised.
        """
        ids = self._encode(problem, prompt)
        if len(ids) > self.max_prompt_tokens:
            raise ConfigError(
                f"problem {problem.id!r} of task {self.task.name} takes {len(ids)} tokens with its "
                f"system prompt, more than rollout.max_prompt_tokens = {self.max_prompt_tokens}: "
                "raise it, or choose shorter problems or prompts"
            )
        return ids

    def fits(self, problem: Problem) -> bool:
        """Whether a problem's context is short enough: under the seed, every evolved prompt, and
        the template's own where there is none."""
        seed = self.task.seed_prompt
        longest = max(self.longest_prompt, self.chat.default_prompt_tokens)
        growth = max(0, longest + _SEAM - self.chat.count(seed))
        return len(self._encode(problem, seed)) + growth <= self.max_prompt_tokens

    def shown(self, problem: Problem) -> str:
        """A problem's messages as a text, without a prompt."""
        return "\n\n".join(message["content"] for message in self._messages(problem))

    def _encode(self, problem: Problem, prompt: str) -> list[int]:
        return self.chat.encode(self._messages(problem), prompt)

    def _messages(self, problem: Problem) -> list[Message]:
        try:
            messages = self.task.render(problem)
        except Exception as error:
            raise raised(self.task, "render", problem, error) from error
        shaped = isinstance(messages, list) and all(
            isinstance(m, dict) and _is_text(m.get("content")) and _is_text(m.get("role"))
            for m in messages
        )
        if not shaped or not messages:
            raise TaskError(
                f"task {self.task.name}: render() must return a list of messages such as "
                f'{{"role": "user", "content": "…"}}, not {str(messages)[:80]!a}'
            )
        return messages


def _is_text(value: object) -> bool:
    """Whether it is text without halves of characters, which no tokenizer takes."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
