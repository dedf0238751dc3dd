"""python -m fst_jax.sft: supervised warm-up of a model on chats.

    python -m fst_jax.sft --model.path DIR --sft.data chats.jsonl --name warm

Learns the last message of every chat, by the mean of −log π_θ over its tokens; the paper warms
its math base up this way without giving details.  One chat in twenty, at least one, is held out
and its loss reported.  Leaves runs/<name>/ with config.yaml, metrics.jsonl and the trained model
in export/, which `model.path` of a later run may name.  A broken-off run starts anew.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fst_jax.settings import answer_help, command, load

if __name__ == "__main__":  # before JAX is imported, which takes seconds
    answer_help("sft", __doc__ or "")

import jax.numpy as jnp
import numpy as np

from fst_jax.config import Config
from fst_jax.errors import ConfigError, TaskError
from fst_jax.models.folder import load_config, load_tokenizer, resolve, stop_ids
from fst_jax.models.huggingface import load_model, save_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.chat import Chat
from fst_jax.run_folder import RunFolder
from fst_jax.slow.packing import Sample, pack
from fst_jax.slow.supervised import SupervisedLearner, make_optimizer
from fst_jax.tasks.task import Message
from fst_jax.tracking import ConsoleTracker, JsonlTracker, Trackers

HELD_OUT = 20  # one chat in so many is not learned from
REPORTS = 20  # lines of progress in a run


def fine_tune(config: Config) -> Path:
    """Train `model.path` on `sft.data`; returns the folder of the trained model."""
    run, settings = RunFolder.of(config), config.sft
    if settings.data is None:
        raise ConfigError("sft.data: name the JSONL file of chats to learn from")
    source = resolve(config.model.path)
    chat = Chat(load_tokenizer(source), config.model.chat_template, stop_ids(source))
    architecture, mesh = load_config(source), make_mesh(config.parallel)
    chats = read_chats(Path(settings.data))
    samples = [sample(chat, messages) for messages in chats]
    for number, encoded in enumerate(samples, start=1):
        length = len(encoded.context_ids) + len(encoded.ids)
        if length > architecture.max_position_embeddings:
            raise ConfigError(
                f"{settings.data}:{number}: the chat takes {length} tokens, more than the "
                f"{architecture.max_position_embeddings} of the model: shorten or remove it"
            )
    held_out, learned = samples[::HELD_OUT], [s for i, s in enumerate(samples) if i % HELD_OUT]
    if not learned:
        raise ConfigError(f"sft.data: {settings.data} holds one chat: two are the least")
    model = load_model(
        source,
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.float32,
        remat=config.model.remat,
    )
    optimizer = make_optimizer(settings.optimizer)
    learner = SupervisedLearner(model, optimizer, mesh, config.slow.head_chunk)
    rows = config.slow.micro_batch_rows
    run.create(config)
    trackers = Trackers([JsonlTracker(run.metrics, 0, 0.0), ConsoleTracker(settings.updates)])
    every = max(1, settings.updates // REPORTS)
    since: list[float] = []
    minibatches = shuffled(learned, settings.batch_size, config.seed)
    for step in range(1, settings.updates + 1):
        rate = settings.learning_rate * min(1.0, step / max(settings.warmup_steps, 1))
        since.append(float(learner.step(pack(next(minibatches), 1, rows, mesh), rate)))
        if step % every == 0 or step == settings.updates:
            held_out_loss = float(learner.loss(pack(held_out, 1, rows, mesh)))
            values = {"loss": float(np.mean(since)), "held_out_loss": held_out_loss, "lr": rate}
            trackers.log("sft", step, values)
            since = []
    trackers.close()
    save_model(run.export, learner.params, architecture, source)
    return run.export


def sample(chat: Chat, messages: Sequence[Message], given: int = 0) -> Sample:
    """A chat as a training row: its last message, without the first `given` tokens, is learned."""
    context = chat.encode(messages[:-1])
    answer = chat.tokenizer.encode(messages[-1]["content"], add_special_tokens=False)
    answer.append(chat.tokenizer.eos_token_id)
    ids = np.array(answer[given:], np.int32)
    return Sample(
        context_ids=(*context, *answer[:given]),
        ids=ids,
        logprobs=np.zeros(len(ids), np.float32),
        temperature=1.0,
        group=0,
        advantage=0.0,
        valid=False,
    )


def shuffled(samples: Sequence[Sample], size: int, seed: int) -> Iterator[list[Sample]]:
    """Minibatches without end; every pass over the samples has its own order."""
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += rng.permutation(len(samples)).tolist()
        yield [samples[i] for i in waiting[:size]]
        waiting = waiting[size:]


def read_chats(path: Path) -> list[list[Message]]:
    """The chats of a JSONL file, a line each.

    Raises:
      TaskError: naming the line that is not a chat, or the file that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise TaskError(f"cannot read the chats of {path}: {error}; check sft.data") from error
    chats = []
    for number, line in enumerate(lines, start=1):
        try:
            messages = json.loads(line)["messages"]
            told = [{"role": m["role"], "content": m["content"]} for m in messages]
            right = len(told) >= 2 and told[-1]["role"] == "assistant"
            # Neither of another type, nor with half a character in it, which encode() refuses.
            right = right and all(text.encode() is not None for m in told for text in m.values())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            right = False
        if not right:
            raise TaskError(
                f'{path}:{number}: not a chat: write {{"messages": [{{"role": "user", "content": '
                '"…"}, {"role": "assistant", "content": "…"}]}'
            )
        chats.append(told)
    if not chats:
        raise TaskError(f"{path} holds no chats: write one a line")
    return chats


def main(arguments: list[str]) -> None:
    """The command."""
    config, _ = load(arguments, "sft", __doc__ or "")
    RunFolder.of(config).check(config)
    print(f"trained model: {fine_tune(config)}")


if __name__ == "__main__":
    sys.exit(command(main))
