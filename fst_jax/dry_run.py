"""What --dry-run prints: the resolved config, the shapes, and the memory that they take."""

import math

import jax

from fst_jax.config import Config
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import abstract_params
from fst_jax.parts import Inputs, held_dtype
from fst_jax.settings import to_yaml
from fst_jax.shapes import bucket
from fst_jax.slow.importance import ratio_to
from fst_jax.slow.optimizer import make_optimizer
from fst_jax.slow.packing import completions_per_row, row_bucket
from fst_jax.slow.policy import starting_shapes

FLOAT32 = 4


def describe(config: Config, inputs: Inputs) -> str:
    """The text of a dry run; loads no weights and compiles nothing."""
    model, rollout = inputs.model, config.rollout
    count = parameters(model)
    dtype_bytes = 2 if config.model.dtype == "bfloat16" else FLOAT32
    kv_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype_bytes

    each = rollout.group_size // config.population
    per_row = completions_per_row(
        each, rollout.max_prompt_tokens, rollout.max_new_tokens, model.hidden_size
    )
    rows = rollout.problems_per_step * rollout.group_size // per_row
    row_tokens = row_bucket(rollout.max_prompt_tokens + per_row * rollout.max_new_tokens)
    sampled = config.rollouts_per_context
    prompts = max(1, rollout.batch_size // sampled)
    prompt_tokens, new_tokens = bucket(rollout.max_prompt_tokens), bucket(rollout.max_new_tokens)
    kv = kv_token * prompts * (prompt_tokens + sampled * new_tokens)
    head = config.slow.head_chunk * model.vocab_size * FLOAT32

    distills = config.distill.enabled
    reinforced = config.slow.enabled and not distills
    scores_old = reinforced and ratio_to(config.slow) == "before"
    penalised = reinforced and config.slow.kl_placement == "reward"

    copies = {"parameters": count * FLOAT32}
    if config.slow.enabled:
        of_both = {"a chunk of logits, both policies'": 2 * head}
        copies = _learner_bytes(config, model)
        copies |= of_both if distills else {"one chunk of logits": head}
    copies |= {f"KV cache, {prompts} prompts × {sampled} samples": kv}
    lines = [
        to_yaml(config).rstrip(),
        "",
        f"model: {model.family}, {count / 1e6:.1f} M parameters, {model.num_layers} layers",
        f"task: {inputs.exam.task.name}, {len(inputs.exam.task.problems('train'))} train and "
        f"{len(inputs.exam.task.problems('test'))} test problems",
        f"mesh: {dict(inputs.mesh.shape)}",
        "",
        f"a step: {rollout.problems_per_step} problems × {rollout.group_size} rollouts, "
        f"{each} under each of {config.population} prompts"
        + (", which the teacher alone is given" if distills else ""),
        f"training rows: {rows} of up to {row_tokens} tokens, one context and {per_row} "
        f"completion(s) each, in micro-batches of {config.slow.micro_batch_rows}"
        + ("; the student's are shorter by the prompt" if distills else ""),
        "",
        "memory over all devices, activations apart:",
        *(f"  {name:<40}{size / 2**30:9.2f} GiB" for name, size in copies.items()),
        f"  {'sum':<40}{sum(copies.values()) / 2**30:9.2f} GiB",
        "",
        "programs to compile, once for each length that occurs, of a short list:",
        f"  sampling for groups (n = {sampled})"
        + (", for fast rounds (n = 1)" if config.fast.enabled else "")
        + " and for evaluation",
        *(["  the train step, for each pair of lengths"] if distills else []),
        *(["  the train step"] if reinforced else []),
        *(["  log-probabilities before the first update"] if scores_old else []),
        *(["  the KL of a step's rollouts"] if penalised else []),
        "  drift from the base, for evaluation",
    ]
    return "\n".join(lines)


def welcome(config: Config, inputs: Inputs) -> str:
    """What a run says at its start: what is loaded, onto what, and why the first step is slow."""
    devices = inputs.mesh.devices.flat
    return (
        f"{config.model.path}: {parameters(inputs.model) / 1e6:.1f} M parameters, on "
        f"{len(devices)} × {devices[0].device_kind}; task {inputs.exam.task.name}\n"
        "programs are compiled when they are first needed: the first of each phase takes longer"
    )


def parameters(model: ModelConfig) -> int:
    """How many numbers the decoder holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))


def _learner_bytes(config: Config, model: ModelConfig) -> dict[str, int]:
    """What the learner holds, in bytes; an offloaded reference is not among it."""
    slow = config.slow
    trained, frozen = starting_shapes(abstract_params(model, held_dtype(config)), slow)
    optimizer = jax.eval_shape(make_optimizer(slow).init, trained)
    if slow.lora_rank:
        held = {"frozen base": frozen, "adapters": trained, "weights merged for sampling": frozen}
    else:
        held = {"parameters": trained}
        distill = config.distill
        refreshed = distill.teacher_refresh if distill.enabled else slow.reference_refresh
        kept = ["teacher" if distill.enabled else "reference"]
        kept += ["base, to measure drift from"] * (refreshed > 0)
        held |= dict.fromkeys(kept, frozen) if slow.reference == "copy" else {}
    held |= {"optimizer": optimizer, "gradients": trained}
    return {
        name: sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for name, tree in held.items()
    }
