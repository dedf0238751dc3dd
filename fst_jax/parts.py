"""The parts of a run, built and checked from its config before anything is written.

Commands share this: `train` and `evaluate` differ in what they do with the
parts, not in how they come to be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from fst_jax.config import Config
from fst_jax.errors import ConfigError, EngineError, ModelError, UserError
from fst_jax.keys import key_in
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Decoder, abstract_params
from fst_jax.models.folder import load_config, load_tokenizer, resolve, stop_ids
from fst_jax.models.huggingface import load_model, save_model
from fst_jax.models.lora import chosen
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import placer
from fst_jax.rollout.chat import Chat
from fst_jax.rollout.engine import Completion, Request
from fst_jax.rollout.exam import Exam
from fst_jax.rollout.local import LocalEngine
from fst_jax.rollout.parity import SAMPLES, TOKENS, Parity
from fst_jax.rollout.rollouts import Actor
from fst_jax.rollout.sglang import SGLangEngine
from fst_jax.run_folder import RunFolder
from fst_jax.slow.groups import unlabelled
from fst_jax.slow.learner import Learner
from fst_jax.slow.logprobs import mean_gap
from fst_jax.slow.packing import pack
from fst_jax.tasks.judge import judge
from fst_jax.tasks.registry import load_task
from fst_jax.tasks.stream import stages_of
from fst_jax.tasks.task import Task
from fst_jax.tracking import check_extras

T = TypeVar("T")

TRIED_PROBLEMS = 128  # of each split, rendered and measured before a run starts


@dataclass(frozen=True)
class Inputs:
    """What the user supplied, read and checked; no weights are loaded yet."""

    folder: Path  # the model's; of a hub model, without its weights
    model: ModelConfig
    exam: Exam  # the task in the model's chat format
    mesh: Mesh


def read_inputs(config: Config) -> Inputs:
    """Read everything that a config names and that may be wrong.

    Raises:
      UserError: with every problem found, a line each.
    """
    problems: list[str] = []

    def read(part: Callable[[], T]) -> T | None:
        try:
            return part()
        except UserError as error:
            problems.extend({str(error)}.difference(problems))  # two parts may meet the same
            return None

    read(lambda: check_extras(config))
    task = read(lambda: load_task(config.task))
    mesh = read(lambda: make_mesh(config.parallel))
    folder = read(lambda: resolve(config.model.path, weights=False))
    model = exam = None
    if folder is not None:
        model = read(lambda: architecture(config, folder))
        chat = read(
            lambda: Chat(load_tokenizer(folder), config.model.chat_template, stop_ids(folder))
        )
        if chat and task:
            exam = read(lambda: _exam(config, task, chat))
    if folder and model and exam and mesh and not problems:
        return Inputs(folder, model, exam, mesh)
    raise UserError("\n".join(problems))


def _exam(config: Config, task: Task, chat: Chat) -> Exam:
    """The exam, tried on the first problems of both splits of every stage."""
    longest_prompt = config.fast.max_prompt_tokens if config.fast.enabled else 0
    exam = Exam(task, chat, config.rollout.max_prompt_tokens, longest_prompt)
    seed_tokens = chat.count(task.seed_prompt)
    if config.fast.enabled and seed_tokens > longest_prompt:
        raise ConfigError(
            f"the seed prompt takes {seed_tokens} tokens, more than fast.max_prompt_tokens = "
            f"{longest_prompt}: no edit of it could stand; raise it or shorten the prompt"
        )
    stages = stages_of(task)
    before_last = sum(stage.steps for stage in stages[:-1])
    if before_last >= config.train.steps:
        raise ConfigError(
            f"train.steps = {config.train.steps} ends before the last stage of the stream, "
            f"{stages[-1].label}, begins at step {before_last}: raise it, or shorten the stages"
        )
    for problems in (split for stage in stages for split in (stage.train, stage.test)):
        tried = [problems[i] for i in range(min(len(problems), TRIED_PROBLEMS))]
        fitting = [problem for problem in tried if exam.fits(problem)]  # the others are skipped
        asked = (fitting or tried)[0]
        exam.context(asked, task.seed_prompt)
        judge(task, asked, "")
        if exam.context(asked, "A") == exam.context(asked, ""):
            raise ModelError(
                "the model's chat template drops the system message, so no prompt would reach the "
                "model: use one that renders it"
            )
        if not fitting:
            raise ConfigError(
                f"no problem like {tried[0].id!r} of task {task.name} would leave room for a "
                f"prompt of fast.max_prompt_tokens = {longest_prompt} within "
                f"rollout.max_prompt_tokens = {exam.max_prompt_tokens}: lower the first or raise "
                "the second"
            )
    return exam


def architecture(config: Config, folder: Path) -> ModelConfig:
    """The model's, whose context must hold the longest prompt and completion."""
    model = load_config(folder)
    total = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    if total > model.max_position_embeddings:
        raise ConfigError(
            f"rollout.max_prompt_tokens + rollout.max_new_tokens = {total} exceed the context of "
            f"{folder.name}, {model.max_position_embeddings} tokens: lower one of them"
        )
    if config.slow.trains_adapters:
        chosen(abstract_params(model), config.slow.lora_layers)
    return model


def held_dtype(config: Config) -> Any:
    """Of the decoder's parameters: float32, but the compute dtype where they are frozen."""
    trained = config.slow.enabled and not config.slow.trains_adapters
    return jnp.dtype("float32" if trained else config.model.dtype)


def load_weights(config: Config, inputs: Inputs, folder: Path | None = None) -> Decoder:
    """The decoder with its parameters placed on the mesh by their rules, of `held_dtype`.

    `folder` names other weights of the same
    architecture: a run's export.
    """
    return load_model(
        folder or resolve(config.model.path),
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=held_dtype(config),
        remat=config.model.remat,
        place=placer(inputs.mesh),
    )


def make_actor(config: Config, inputs: Inputs, model: Decoder) -> Actor:
    """The policy at work.

    Raises:
      EngineError: a server cannot be reached, or cannot take the weights that will be trained.
    """
    settings = config.rollout
    if settings.engine == "local":
        return Actor(LocalEngine(model, inputs.mesh, settings.batch_size), inputs.exam)
    own = RunFolder.of(config).path
    weights = Path(settings.weights_dir) / own.name if settings.weights_dir else own / "weights"
    engine = SGLangEngine(
        settings.url.split(","),
        lambda folder, params: save_model(folder, params, inputs.model, inputs.folder),
        weights,
        max_context=inputs.model.max_position_embeddings,
        batch_size=settings.batch_size,
        timeout_s=settings.timeout_s,
        patience_s=settings.patience_s,
        api_key=key_in(settings.api_key_env),
    )
    if config.slow.enabled and not engine.capabilities.update_weights:
        raise EngineError(
            f"a server of {settings.url} serves fixed weights, for rollouts and evaluation only: "
            "set slow.enabled to false, or choose another server"
        )
    return Actor(engine, inputs.exam)


def make_parity(config: Config, inputs: Inputs, actor: Actor, model: Decoder) -> Parity | None:
    """The check of a served model against the learner, or None where they are one."""
    if config.rollout.engine == "local":
        return None
    graphdef, exam = nnx.graphdef(model), inputs.exam
    problems = stages_of(exam.task)[0].train
    first = (problems[i] for i in range(min(len(problems), TRIED_PROBLEMS)))
    tried = [problem for problem in first if exam.fits(problem)]
    asked = [
        Request(
            prompt_ids=tuple(exam.context(problem, exam.task.seed_prompt)),
            max_new_tokens=min(TOKENS, config.rollout.max_new_tokens),
            temperature=config.rollout.temperature,
            stop_ids=exam.chat.stop_ids,
            seed=seed,
        )
        for seed, problem in enumerate(tried[:SAMPLES])
    ]

    def gap(params: Any, asked: Sequence[Request], answers: Sequence[Completion]) -> float:
        pairs = zip(asked, answers, strict=True)
        samples = [unlabelled(request.prompt_ids, answer) for request, answer in pairs]
        return mean_gap(
            params,
            pack(samples, 1, config.slow.micro_batch_rows, inputs.mesh),
            graphdef=graphdef,
            mesh=inputs.mesh,
            head_chunk=config.slow.head_chunk,
        )

    return Parity(actor.engine, asked, gap, config.rollout.max_mismatch)


def make_learner(config: Config, inputs: Inputs, model: Decoder) -> Learner | None:
    """The slow weights' learner, or None where they stay frozen."""
    if not config.slow.enabled:
        return None
    distilling = config.distill if config.distill.enabled else None
    return Learner(model, config.slow, inputs.mesh, config.seed, distilling)
