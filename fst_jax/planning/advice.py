"""What to change where a plan does not fit, each piece of advice with the figure behind it."""

import math

from jax.sharding import Mesh

from fst_jax.config import Config
from fst_jax.parallel.chips import GIB
from fst_jax.parallel.sharding import ROWS, shards
from fst_jax.planning.report import Planned, memory_limit
from fst_jax.slow.packing import Batch

_SHARE = 0.1  # of the limit, below which a part is not worth a line
_LOGIT_COPIES = 3  # float32: logits, their exponentials, their gradient


def advise(
    config: Config, vocabulary: int, batch: Batch | None, mesh: Mesh, programs: list[Planned]
) -> list[str]:
    """Lines for the user, the most helpful first; none where everything fits."""
    limit = memory_limit(mesh)
    worst = max(programs, key=lambda program: program.peak)
    refused = [program for program in programs if program.cost is None]
    worst = refused[0] if refused else worst
    if limit is None or (worst.peak <= limit and not refused):
        return []
    over, lines = worst.peak - limit, []
    if batch is not None and worst.name == "train step":
        lines += _of_step(config, vocabulary, batch, mesh, worst, limit)
    lines += _of_state(config, mesh, worst, limit)
    if worst.hbm["sampler"] > _SHARE * limit:
        lines.append(
            f"rollout.batch_size: {config.rollout.batch_size} sequences at once and their weights "
            f"take {_gib(worst.hbm['sampler'])}; fewer take less in proportion, as does a smaller "
            "rollout.max_new_tokens"
        )
    if not lines:
        lines.append(f"more chips: {_gib(over)} on each are wanting, and no one part is large")
    return lines


def _of_step(
    config: Config, vocabulary: int, batch: Batch, mesh: Mesh, step: Planned, limit: int
) -> list[str]:
    """On what a micro-batch takes."""
    lines = []
    ways = shards(mesh, ROWS)
    rows = batch.tokens.shape[1] // ways  # of a chip
    fixed = sum(step.hbm[kind] for kind in ("parameters", "optimizer", "reference", "sampler"))
    gradients = 0 if config.slow.lora_rank else step.hbm["parameters"]
    work = max(1, step.peak - fixed - gradients)
    if rows > 1:
        fitting = int(max(0, limit - fixed - gradients) * rows / work)
        fewer = min(rows - 1, max(1, fitting))
        hope = "would fit" if fitting >= 1 else "is the least, and may not be enough"
        lines.append(
            f"slow.micro_batch_rows: {fewer * ways} instead of {rows * ways}: activations and "
            f"temporaries are about {_gib(work / rows)} for each of a chip's {rows} rows; "
            f"{fewer} {hope}"
        )
    if config.model.remat in ("none", "dots"):
        lines.append(
            "model.remat: full keeps the inputs of layers alone; activations are "
            f"{_gib(step.hbm['activations'])} now"
        )
    elif config.model.remat == "full" and step.hbm["activations"] > _SHARE * limit:
        lines.append(
            f"model.remat: offload moves the inputs of layers, {_gib(step.hbm['activations'])}, to "
            "the host's memory"
        )
    per_chip = max(rows, config.slow.head_chunk // ways // mesh.shape["context"])
    logits = _LOGIT_COPIES * 4 * per_chip * vocabulary // mesh.shape["tensor"]
    if logits > _SHARE * limit and per_chip > rows:
        lines.append(
            f"slow.head_chunk: {config.slow.head_chunk // 2} instead of {config.slow.head_chunk} "
            f"halves the logits, about {_gib(logits)} a chip"
        )
    if rows == 1 and work > limit - fixed:
        tokens = batch.tokens.shape[2]
        lines.append(
            f"parallel.mesh.context: {2 * mesh.shape['context']}, taken from fsdp: a chip's row of "
            f"{tokens} tokens takes {_gib(work)}, and the context axis splits it"
        )
    if config.model.dtype == "float32":
        lines.append("model.dtype: bfloat16 halves activations")
    return lines


def _of_state(config: Config, mesh: Mesh, program: Planned, limit: int) -> list[str]:
    """On parameters, optimiser and reference."""
    state = sum(program.hbm[kind] for kind in ("parameters", "optimizer", "reference"))
    if state < limit / 4:
        return []
    lines, slow = [], config.slow
    if mesh.shape["data"] > 1:
        lines.append(
            f"parallel.mesh: data {mesh.shape['data']} holds as many copies of {_gib(state)} of "
            "parameters, optimiser and reference; give its chips to fsdp"
        )
    work = program.peak - state
    if work < limit:
        chips = mesh.size * math.ceil(state / (limit - work))
        if chips > mesh.size:
            lines.append(
                f"parallel.mesh.fsdp: {chips} chips in all would split the {_gib(state)} of "
                "parameters, optimiser and reference far enough"
            )
    if slow.enabled and not slow.lora_rank:
        lines.append(
            "slow.lora_rank: 32 would train adapters: no optimiser of all weights, no reference, "
            f"of {_gib(program.hbm['optimizer'] + program.hbm['reference'])} now"
        )
        if slow.optimizer == "adamw":
            lines.append(
                "slow.optimizer: adafactor keeps next to nothing of the optimiser's "
                f"{_gib(program.hbm['optimizer'])}, adamw_bfloat16 three quarters"
            )
        if slow.reference == "copy":
            lines.append(
                "slow.reference: offload moves the reference's "
                f"{_gib(program.hbm['reference'])} to the host's memory"
            )
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
