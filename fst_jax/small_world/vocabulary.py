"""The tokenizer of the small world: one token for each word, number and mark that it knows."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from fst_jax.small_world import instructions, questions

PAD, UNKNOWN, SYSTEM, USER, ASSISTANT, END = SPECIAL = (
    "<|pad|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
)  # fmt: skip
_MARKS = ". , ; : = > [ ] ( ) { }"
_GLUE = "graph from to back path so x answer has in via where is reverse rotate swap shift ends"
# A conversation always opens with the system token, so that an empty prompt looks like one.
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|system|>{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def words() -> list[str]:
    """Every token that is not special, in a fixed order."""
    sentences = [s for kind in instructions.TRAINED.values() for s in kind]
    sentences += [s for kind in instructions.HELD_OUT.values() for s in kind]
    text = " ".join([_MARKS, _GLUE, *sentences])
    return [*map(str, range(questions.NUMBERS)), *sorted(set(text.split()))]


def write_tokenizer(folder: Path, max_tokens: int) -> int:
    """Write tokenizer, chat template and generation settings; returns the vocabulary's size."""
    tokens = [*SPECIAL, *words()]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "pad_token": PAD,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    generation = {"eos_token_id": vocabulary[END], "pad_token_id": vocabulary[PAD]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return len(tokens)
