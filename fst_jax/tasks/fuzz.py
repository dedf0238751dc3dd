"""Random answers that try a scorer: noise, scraps of answer formats, and mangled right answers."""

from collections.abc import Iterator, Sequence

import numpy as np

from fst_jax.tasks.task import Problem

_SCRAPS = (
    *("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{", "[", "]", "```\n"),
    *("\n```", "```json\n", '"', ":", ",", "\n", " ", "=", "-", "/", "\\frac{", "^{", "_", "$"),
    *(
        "true",
        "null",
        "NaN",
        "1e999",
        "0.1",
        "12",
        "-7",
        "x",
        "\\sqrt{",
        "\\text{",
        "the answer is",
    ),
    *(
        "A",
        "B.",
        "(C)",
        "\x00",
        "\ud800",
        "é",
        "中",
        "\u202e",
        "𝔘",
        "\t",
        "&",
        "\\\\",
        "\\{",
        "\\}",
    ),
)


def random_answers(problems: Sequence[Problem], count: int, seed: int) -> Iterator[str]:
    """`count` texts; those made of right answers go through `problems` in turn."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        gold = problems[i % len(problems)].answer
        yield _MAKERS[int(rng.integers(len(_MAKERS)))](gold, rng)


def forms(answer: str) -> dict[str, str]:
    """An answer in each form that a built-in scorer reads, by the form's name."""
    return {
        "alone": answer,
        "in answer tags": f"<answer>{answer}</answer>",
        "boxed": rf"\boxed{{{answer}}}",
        "fenced": f"```\n{answer}\n```",
    }


def _noise(gold: str, rng: np.random.Generator) -> str:
    size = int(rng.integers(0, 200))
    points = rng.integers(0, (128, 0x3000, 0x110000)[int(rng.integers(3))], size)
    return "".join(map(chr, points.tolist()))


def _scraps(gold: str, rng: np.random.Generator) -> str:
    chosen = rng.integers(0, len(_SCRAPS), int(rng.integers(1, 40)))
    return "".join(_SCRAPS[i] for i in chosen.tolist())


def _wrapped(gold: str, rng: np.random.Generator) -> str:
    inner = (gold, _noise(gold, rng)[:20], _scraps(gold, rng))[int(rng.integers(3))]
    return list(forms(inner).values())[int(rng.integers(4))]


def _mangled(gold: str, rng: np.random.Generator) -> str:
    """A right answer with characters dropped, doubled or replaced by scraps, maybe cut short."""
    text = list(forms(gold).values())[int(rng.integers(4))]
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(text) + 1))
        put = ("", _SCRAPS[int(rng.integers(len(_SCRAPS)))])[int(rng.integers(2))]
        text = text[:at] + put + text[at + int(rng.integers(2)) :]
    return text[: int(rng.integers(len(text) + 1))] if rng.random() < 0.3 else text


def _repeated(gold: str, rng: np.random.Generator) -> str:
    return _scraps(gold, rng)[:12] * int(rng.integers(1, 2000))


_MAKERS = (_noise, _scraps, _wrapped, _wrapped, _mangled, _mangled, _repeated)
