"""A step whose loss was not finite, kept so that it can be looked at and computed again.

    nonfinite/<step>/rollouts.jsonl   a line a rollout: problem, prompt, text, reward, advantage, …
    nonfinite/<step>/batch-<i>.npz    the packed arrays of minibatch i, as the learner had them

`load` gives the minibatches back, array by array; `fst_jax.replay` computes their loss under the
weights of the run's checkpoint.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fst_jax.models.splash_rows import Layout
from fst_jax.rollout.plain import readable
from fst_jax.rollout.rollouts import Rollout
from fst_jax.slow.packing import Batch, Pair, sides
from fst_jax.tracking import plain


def save(
    folder: Path, minibatches: Sequence[Batch | Pair], groups: Sequence[Sequence[Rollout]]
) -> None:
    """Write a step's minibatches and the rollouts that they were packed from, in their order.

    The folder appears when it is complete, in place of an earlier one.
    """
    draft = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for i, batch in enumerate(minibatches):
        arrays: dict[str, Any] = dict(_arrays(batch))
        np.savez_compressed(draft / f"batch-{i}.npz", **arrays)
    with open(draft / "rollouts.jsonl", "w", encoding="utf-8") as file:
        for rollout, advantage in _with_advantages(minibatches, groups):
            line = plain(_in_full(rollout) | {"advantage": advantage})
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def load(folder: Path) -> list[Batch | Pair]:
    """The minibatches that `save` wrote.

    Raises:
      FileNotFoundError: there are none.
    """
    paths = sorted(folder.glob("batch-*.npz"), key=lambda path: int(path.stem.split("-")[1]))
    if not paths:
        raise FileNotFoundError(f"no batch-<i>.npz in {folder}")
    return [_batch(path) for path in paths]


def _with_advantages(
    minibatches: Sequence[Batch | Pair], groups: Sequence[Sequence[Rollout]]
) -> Iterator[tuple[Rollout, float | None]]:
    """Every rollout with the advantage that its minibatch gives it; None if it has no tokens.

    Problems are divided among minibatches as by `split_problems`; in each, rollouts are numbered
    from 1.
    """
    tables = []
    for batch in minibatches:
        own = sides(batch).own
        numbers, places = np.unique(own.sample, return_index=True)
        tables.append(dict(zip(numbers.tolist(), own.advantage.flat[places].tolist(), strict=True)))
    count = [0] * len(minibatches)
    for p, group in enumerate(groups):
        part = p * len(minibatches) // len(groups)
        for rollout in group:
            count[part] += 1
            yield rollout, tables[part].get(count[part])


def _in_full(rollout: Rollout) -> dict[str, Any]:
    done = rollout.completion
    return readable(rollout) | {
        "finish_reason": done.finish_reason,
        "temperature": done.temperature,
        "weight_version": done.weight_version,
        "context_ids": rollout.context_ids,
        "ids": done.ids,
        "logprobs": done.logprobs,
    }


# The arrays of a batch as an .npz holds them: own/tokens, …, and frozen/tokens, … of a pair.
_SIDES = Pair._fields


def _arrays(batch: Batch | Pair) -> Iterator[tuple[str, np.ndarray]]:
    for side, part in zip(_SIDES, batch if isinstance(batch, Pair) else [batch], strict=False):
        for name, value in part._asdict().items():
            if isinstance(value, Layout):
                yield f"{side}/{name}", np.array(value.runs, np.int32)
            elif value is not None:
                array = np.asarray(value)
                # NumPy's format knows no bfloat16: its bits are kept, under a name that says so.
                bits = array.dtype == ml_dtypes.bfloat16
                yield (
                    f"{side}/{name}" + ":bfloat16" * bits,
                    array.view(np.uint16) if bits else array,
                )


def _batch(path: Path) -> Batch | Pair:
    read: dict[str, dict[str, Any]] = {side: {} for side in _SIDES}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            side, _, name = key.partition("/")
            name, _, bits = name.partition(":")
            value = file[key].view(ml_dtypes.bfloat16) if bits else file[key]
            if name == "layout":
                value = Layout(tuple(tuple(run) for run in value.tolist()))
            read[side][name] = value
    batches = [Batch(**fields) for fields in read.values() if fields]
    return Pair(*batches) if len(batches) > 1 else batches[0]
