"""What a proposed prompt must be before any rollout is spent on it.

The same rules hold for every reflector and are checked after every edit.  The
reasons are counted in the metrics.  The paper does not speak of validation;
each rule answers a failure seen in prompt evolution elsewhere: adopted
fragments of cut-off answers, chat-template tokens that end the system message,
prompts that grow without bound, and training answers copied into the prompt.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence

from fst_jax.rollout.chat import THINK_TAGS
from fst_jax.tasks.task import Problem

QUESTION_WORDS = 8  # this many consecutive words of one problem's question are a quotation
ANSWER_WORDS = 3  # a gold answer shorter than this ("yes", "42") may stand in a prompt
ANSWER_CHARACTERS = 8  # … and so may one shorter than this ("1, 2, 3")
_WORD = re.compile(r"\w+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tabs and line ends


def normalised(text: str) -> str:
    """The text with every run of whitespace as one space."""
    return " ".join(text.split())


class TrainingText:
    """The word sequences that would give a training problem away.

    They are every `QUESTION_WORDS` consecutive words of a question, and every
    gold answer of at least `ANSWER_WORDS` words and `ANSWER_CHARACTERS`
    characters, each of its parts by itself where semicolons divide it.
    Sequences that several problems share are the task's own wording or its
    labels, and are free to use.
    """

    def __init__(self, problems: Iterable[Problem]):
        holders: dict[tuple[str, ...], int] = {}
        for problem in {problem.id: problem for problem in problems}.values():
            sequences = set(_ngrams(_words(problem.question), QUESTION_WORDS))
            for part in (problem.answer, *problem.answer.split(";")):
                answer = _words(part)
                if len(answer) >= ANSWER_WORDS and len(" ".join(answer)) >= ANSWER_CHARACTERS:
                    sequences.add(answer)
            for sequence in sequences:
                holders[sequence] = holders.get(sequence, 0) + 1
        self._private = {sequence for sequence, count in holders.items() if count == 1}
        self._lengths = sorted({len(sequence) for sequence in self._private})

    def quoted_in(self, text: str) -> set[tuple[str, ...]]:
        """The private word sequences that stand in `text`."""
        words = _words(text)
        return {
            ngram
            for length in self._lengths
            for ngram in _ngrams(words, length)
            if ngram in self._private
        }


class Validator:
    """Gives the reason why a proposed prompt is refused, or None."""

    def __init__(
        self,
        count_tokens: Callable[[str], int],
        control_tokens: Sequence[str],
        max_tokens: int,
        holds_control: Callable[[str], bool] = lambda text: False,
    ):
        """`control_tokens` are the texts that the tokenizer reads as control tokens, and
        `holds_control` whether it reads one in a text.

        They are looked for in any case, width and spacing: other tokenizers may read the prompt.
        Tags of thoughts are refused as well, which many tokenizers list as plain text.
        """
        self.count_tokens, self.holds_control = count_tokens, holds_control
        folded = map(_folded, (*control_tokens, *THINK_TAGS))
        self.control_tokens = tuple(token for token in folded if token)
        self.max_tokens = max_tokens

    def reason(
        self, text: str, parents: Sequence[str], known: Collection[str], training: TrainingText
    ) -> str | None:
        """Why `text`, an edit of its parent or a merge of both, is refused.

        `known` holds the `normalised` texts of the pool and of what this round
        has already tried.  What a parent itself quotes is not held against
        its children, since the seed prompt is the user's.
        """
        if not text.strip():
            return "empty"
        folded = _folded(text)
        if any(token in folded for token in self.control_tokens) or self.holds_control(text):
            return "control tokens"
        if _CONTROL.search(text):
            return "control characters"
        if self.count_tokens(text) > self.max_tokens:
            return "too long"
        if normalised(text) in {*map(normalised, parents), *known}:
            return "identical"
        if training.quoted_in(text).difference(*map(training.quoted_in, parents)):
            return "quotes training answers"
        return None


def _folded(text: str) -> str:
    """The text without case, width and spaces, as tokenizers may read it, nor what is not seen."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c) != "Cf")


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _ngrams(words: tuple[str, ...], n: int) -> Iterable[tuple[str, ...]]:
    return (words[i : i + n] for i in range(len(words) - n + 1))
