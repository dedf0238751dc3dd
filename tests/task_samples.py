"""Small data for every built-in task, in the formats in which the real data come."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from fst_jax.config import TaskSettings

GSM8K = [
    {
        "question": f"A shelf holds {n} jars and each jar holds {k} plums. How many plums is that?",
        "answer": f"Each of the {n} jars has {k} plums.\n{n} * {k} = <<{n}*{k}={n * k}>>{n * k}\n"
        f"#### {n * k}",
    }
    for n in range(2, 12)
    for k in (3, 5, 8)
]
MATH = [
    {
        "problem": rf"What is $\frac{{1}}{{{n}}} + \frac{{1}}{{{n}}}$ in lowest terms?",
        "solution": rf"We add: $\frac{{1}}{{{n}}} + \frac{{1}}{{{n}}} = \frac{{2}}{{{n}}}$, so the "
        rf"answer is $\boxed{{\frac{{2}}{{{n}}}}}$.",
        "level": "Level 1",
        "type": "Prealgebra",
    }
    for n in range(3, 43, 2)
]
POLARIS = [
    {
        "difficulty": "3/8",
        "problem": f"Find the sum of the first {n} positive integers.",
        "answer": f"{n * (n + 1) // 2}",
    }
    for n in range(5, 45)
]
SCIKNOWEVAL = [
    {
        "prompt": {"default": "Pick an option."},
        "question": f"A cart moves {v} m in each second. How far does it get in {t} s?",
        "choices": {
            "text": [f"{v + t} m", f"{v * t} m", f"{v * t * 10} m", f"{abs(v - t)} m"],
            "label": ["A", "B", "C", "D"],
        },
        "answer": "",
        "answerKey": "B",
        "type": "mcq-4-choices",
        "domain": "Physics",
        "details": {"level": "L3", "task": "motion", "subtask": "speed", "source": "made up"},
    }
    for v in range(3, 9)
    for t in (4, 7, 11)
] + [
    {
        "question": "Which element has the symbol Fe?",
        "choices": {"text": ["iron", "gold", "tin", "lead"], "label": ["A", "B", "C", "D"]},
        "answer": "",
        "answerKey": "A",
        "type": "mcq-4-choices",
        "domain": "Chemistry",
    },
    {
        "question": "Explain why a mirror swaps left and right.",
        "choices": {"text": [], "label": []},
        "answer": "It does not; it swaps front and back.",
        "answerKey": "",
        "type": "open-ended-qa",
        "domain": "Physics",
    },
]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows as JSONL; returns the path as a setting has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_hover(folder: Path, claims: int = 300, test: int = 60) -> str:
    """The sample encyclopedia with its claims, imported; returns the task's folder."""
    from fst_jax.tasks.hover_import import import_hover
    from fst_jax.tasks.hover_sample import write_sample

    raw = folder / "raw"
    write_sample(raw, claims, test)
    splits = {split: str(raw / f"{split}.json") for split in ("train", "test")}
    import_hover(splits, str(raw / "pages.jsonl"), str(folder / "hover"))
    return str(folder / "hover")


def write_tfds(folder: Path) -> str:
    """A data set that TensorFlow Datasets writes itself; returns the builder's folder."""
    import numpy as np
    import tensorflow_datasets as tfds

    class Parity(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # defined anew each time
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "question": tfds.features.Text(),
                "hint": tfds.features.Text(),
                "parity": tfds.features.ClassLabel(names=["even", "odd"]),
                "n": tfds.features.Scalar(np.int32),
                "digits": tfds.features.Sequence(tfds.features.Scalar(np.int32)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager: Any) -> Any:
            return {
                "train": self._generate_examples(0, 40),
                "test": self._generate_examples(40, 50),
            }

        def _generate_examples(self, start: int, end: int) -> Any:  # type: ignore[override]
            for n in range(start, end):
                yield (
                    n,
                    {
                        "question": f"Is {n} even or odd? Überlege.",
                        "hint": "Look at the last digit.",
                        "parity": n % 2,
                        "n": n,
                        "digits": [int(digit) for digit in str(n)],
                    },
                )

    builder = Parity(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def sample_settings(name: str, folder: Path) -> TaskSettings:
    """Settings of a built-in task, small, on sample data written below `folder`."""
    sizes = {"train_size": 12, "test_size": 4}
    settings = partial(TaskSettings, name=name)
    if name == "math":
        path = write_jsonl(folder / "polaris.jsonl", POLARIS)
        return settings(options={"train": path, "test_size": 8})
    if name == "choice":
        path = write_jsonl(folder / "sciknoweval.jsonl", SCIKNOWEVAL)
        return settings(options={"train": path, "test_size": 5, "domain": "physics"})
    if name == "hover":
        return settings(options={"folder": write_hover(folder)})
    if name == "tfds":
        options = {"builder": write_tfds(folder), "answer": "{parity}", "scorer": "contains"}
        return settings(options=options)
    if name == "jsonl":
        rows = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(30)]
        paths = {
            "train_path": write_jsonl(folder / "train.jsonl", rows[:20]),
            "test_path": write_jsonl(folder / "test.jsonl", rows[20:]),
        }
        return settings(options={**paths, "scorer": "number"})
    if name == "star_graph":
        return settings(options={"degree": 3, "path_nodes": 4, "node_range": 40, **sizes})
    if name == "reasoning_gym":
        return settings(options={"dataset": "chain_sum", **sizes})
    if name == "stream":
        stages = [
            {"name": inner, "options": sample_settings(inner, folder).options, "steps": 2}
            for inner in ("star_graph", "jsonl")
        ]
        return settings(options={"stages": stages})
    return settings(options=sizes)
