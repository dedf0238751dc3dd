"""Whether settings fit together: what no type says of a single field or of several."""

import math
import re
from dataclasses import asdict

from fst_jax.config import Config, Objective, WatchSettings
from fst_jax.keys import secrets_found

UNCLIPPED: tuple[Objective, ...] = ("cispo", "rloo", "reinforce")  # no trust region
_MINIMA = {
    "rollout.group_size": 1,
    "rollout.problems_per_step": 1,
    "rollout.max_new_tokens": 1,
    "rollout.max_prompt_tokens": 1,
    "rollout.batch_size": 1,
    "slow.warmup_steps": 0,
    "slow.weight_decay": 0,
    "slow.kl_coefficient": 0,
    "slow.minibatches": 1,
    "slow.epochs": 1,
    "slow.reference_refresh": 0,
    "slow.micro_batch_rows": 1,
    "slow.head_chunk": 1,
    "slow.lora_rank": 0,
    "sft.warmup_steps": 0,
    "sft.updates": 1,
    "sft.batch_size": 1,
    "fast.population": 1,
    "fast.cycle_steps": 1,
    "fast.anchors": 1,
    "fast.anchor_rollouts": 1,
    "fast.metric_calls": 1,
    "fast.minibatch": 1,
    "fast.reuse_staleness": 0,
    "fast.proposals": 1,
    "fast.max_prompt_tokens": 1,
    "fast.lm_max_tokens": 1,
    "fast.lm_examples_tokens": 100,
    "distill.teacher_refresh": 0,
    "train.steps": 1,
    "eval.every": 0,
    "eval.problems": 1,
    "eval.samples": 1,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "checkpoint.keep_every": 0,
    "checkpoint.export_every": 0,
    "guards.patience": 1,
}
_POSITIVE = (
    "rollout.temperature",
    "rollout.timeout_s",
    "rollout.patience_s",
    "rollout.max_mismatch",
    "slow.learning_rate",
    "sft.learning_rate",
    "slow.max_grad_norm",
    "slow.clip_threshold",
    "slow.lora_alpha",
    "slow.importance_cap",
    "eval.temperature",
    "watch.stop_within_s",
    "task.timeout_s",
    "task.memory_gb",
    "parallel.start_timeout_s",
    "fast.lm_timeout_s",
    "guards.max_mismatch",
    "guards.max_kl",
)


def problems_found(config: Config) -> list[tuple[str, str]]:
    """Every inconsistency as (key, message); empty when the config can run."""
    found = list(secrets_found(asdict(config)))

    def require(holds: bool, key: str, message: str) -> None:
        if not holds:
            found.append((key, message))

    for key, minimum in _MINIMA.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        require(value is None or value >= minimum, key, f"must be at least {minimum}, not {value}")
    for key in _POSITIVE:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        fits = value is None or 0 < value < math.inf
        require(fits, key, f"must be above 0 and finite, not {value}")
    require(
        config.rollout.group_size >= 2 or not config.slow.enabled or config.distill.enabled,
        "rollout.group_size",
        "G must be at least 2: a group of one has no advantage",
    )
    require(0 < config.eval.top_p <= 1, "eval.top_p", "must be in (0, 1]")
    for key, value in (("adam_b1", config.slow.adam_b1), ("adam_b2", config.slow.adam_b2)):
        require(0 <= value < 1, f"slow.{key}", f"must be in [0, 1), not {value}")
    for name, limit in config.watch.stall_s.items():
        key, phases = f"watch.stall_s.{name}", WatchSettings().stall_s
        require(name in phases, key, f"no phase has this name; they are {', '.join(phases)}")
        require(0 <= limit < math.inf, key, f"must be at least 0 and finite, not {limit}")
    code = config.watch.stopped_exit
    require(0 <= code <= 125, "watch.stopped_exit", f"must be in [0, 125], not {code}")
    found.extend(_of_stalls(config))
    require(0 <= config.seed < 2**31, "seed", f"must be in [0, 2^31), not {config.seed}")
    if config.population >= 1:
        require(
            config.rollout.group_size % config.population == 0,
            "fast.population",
            f"K = {config.population} must divide rollout.group_size G = "
            f"{config.rollout.group_size}, since each prompt serves G/K rollouts of a problem",
        )
    if config.slow.baseline == "prompt" and not config.distill.enabled:
        require(
            config.rollout.group_size // max(config.population, 1) >= 2,
            "slow.baseline",
            "a baseline per prompt needs at least 2 rollouts under each prompt (G/K ≥ 2)",
        )
    require(
        config.rollout.problems_per_step % max(config.slow.minibatches, 1) == 0,
        "slow.minibatches",
        f"must divide rollout.problems_per_step = {config.rollout.problems_per_step}, so that "
        "every update sees equally many problems",
    )
    for name, ceiling in (("clip_low", 1.0), ("clip_high", math.inf)):
        value = getattr(config.slow, name)
        require(
            value is None or 0 < value < ceiling,
            f"slow.{name}",
            f"must be above 0 and below {ceiling}, not {value}",
        )
        require(
            value is None or config.slow.objective not in UNCLIPPED,
            f"slow.{name}",
            f"{config.slow.objective} has no clip range: remove it, or choose another "
            "slow.objective",
        )
    require(
        config.slow.reference_refresh == 0 or config.slow.lora_rank == 0,
        "slow.reference_refresh",
        "with LoRA the reference is the base with its adapters off, which stays as it is: set "
        "it to 0, or slow.lora_rank to 0",
    )
    require(
        config.slow.reference_refresh == 0 or config.slow.kl_coefficient > 0,
        "slow.reference_refresh",
        "slow.kl_coefficient is 0, so that no reference is used: set it to 0, or the "
        "coefficient above 0",
    )
    if config.distill.enabled:
        found.extend(_of_distillation(config))
    require(
        config.slow.enabled or config.fast.enabled,
        "slow.enabled",
        "slow.enabled and fast.enabled are both false: nothing would learn",
    )
    require(
        _is_pattern(config.slow.lora_layers),
        "slow.lora_layers",
        f"not a regular expression: {config.slow.lora_layers!r}",
    )
    require(
        config.slow.reference == "copy" or config.slow.lora_rank == 0,
        "slow.reference",
        "with LoRA the reference is the base that the policy uses too, so that there is "
        "nothing to offload: set it to copy, or slow.lora_rank to 0",
    )
    require(
        re.fullmatch(r"\w[\w .+=@-]{0,99}", config.name) is not None
        and config.name == config.name.strip(),
        "name",
        "must be a plain folder name of letters, digits and any of '_-.+=@', at most 100 long",
    )
    for url in config.rollout.url.split(","):
        require(
            config.rollout.engine == "local" or url.strip().startswith(("http://", "https://")),
            "rollout.url",
            f"must begin with http:// or https://, not {url.strip()!r}",
        )
    parallel = config.parallel
    by_hand = parallel.coordinator not in (None, "auto")
    require(
        not by_hand or re.fullmatch(r".+:\d+", parallel.coordinator or "") is not None,
        "parallel.coordinator",
        f"must be auto or the host:port of process 0, not {parallel.coordinator!r}",
    )
    for key, number in (("processes", parallel.processes), ("process", parallel.process)):
        require(
            (number is not None) == by_hand,
            f"parallel.{key}",
            "goes with a host:port as parallel.coordinator: set both or neither",
        )
    if parallel.processes is not None and parallel.process is not None:
        require(
            0 <= parallel.process < parallel.processes,
            "parallel.process",
            f"must be from 0 to {parallel.processes - 1}, below parallel.processes",
        )
    if config.fast.enabled:
        require(
            config.fast.reflector != "lm"
            or config.fast.lm_url is None
            or config.fast.lm_url.startswith(("http://", "https://")),
            "fast.lm_url",
            f"must begin with http:// or https://, not {config.fast.lm_url!r}",
        )
        require(
            config.fast.reflector != "lm"
            or config.fast.lm_url is not None
            or config.rollout.engine == "sglang",
            "fast.lm_url",
            "null means the policy's own server, and there is none: name an endpoint, or set "
            "rollout.engine to sglang",
        )
        for field in ("messages", "n", "stream"):
            require(
                field not in config.fast.lm_options,
                "fast.lm_options",
                f"{field} is not to be set: a request is one question with one answer, as a whole",
            )
        prices = (config.fast.lm_price_in, config.fast.lm_price_out)
        for key, price in zip(("in", "out"), prices, strict=True):
            require(
                price is None or 0 <= price < math.inf,
                f"fast.lm_price_{key}",
                f"must be at least 0 and finite, not {price}",
            )
        require(
            (prices[0] is None) == (prices[1] is None),
            "fast.lm_price_in" if prices[0] is None else "fast.lm_price_out",
            "a cost takes both prices: set both or neither",
        )
        anchors = min(
            config.fast.anchors, config.fast.cycle_steps * config.rollout.problems_per_step
        )
        scoring = anchors * config.fast.anchor_rollouts
        needed = scoring + 2 * min(config.fast.minibatch, anchors)
        require(
            config.fast.metric_calls >= needed,
            "fast.metric_calls",
            f"{config.fast.metric_calls} cannot pay one proposal, which takes {needed} rollouts: "
            f"two minibatches and {scoring} on the anchors; raise it or lower fast.anchors",
        )
        require(
            config.fast.max_prompt_tokens < config.rollout.max_prompt_tokens,
            "fast.max_prompt_tokens",
            "must be below rollout.max_prompt_tokens, which also holds the problem",
        )
    return found


def _of_stalls(config: Config) -> list[tuple[str, str]]:
    """Phases that would count as stalled while one request may still be answered."""
    waits = []
    if config.rollout.engine == "sglang":
        served = ("sync", "evolve", "rollout", "evaluate")
        waits += [(phase, "rollout.timeout_s", config.rollout.timeout_s) for phase in served]
    if config.fast.enabled and config.fast.reflector == "lm":
        waits.append(("evolve", "fast.lm_timeout_s", config.fast.lm_timeout_s))
    limits = config.watch.stall_s
    return [
        (
            f"watch.stall_s.{phase}",
            f"must be above {key} = {wait:g}, for which one request may take, or 0",
        )
        for phase, key, wait in waits
        if 0 < limits.get(phase, 0) <= wait
    ]


def _of_distillation(config: Config) -> list[tuple[str, str]]:
    """What does not go with a student and its teacher."""
    slow, distill = config.slow, config.distill
    refused = {
        "slow.enabled": (
            not slow.enabled,
            "distill.enabled is true, and the student's weights are what slow.enabled trains: set "
            "it to true, or distill.enabled to false",
        ),
        "distill.student_prompt": (
            distill.student_prompt == "seed" and not config.fast.enabled,
            "with fast.enabled false the teacher has the seed prompt too, so that there is nothing "
            "to learn from it: set it to none, or fast.enabled to true",
        ),
        "distill.teacher_refresh": (
            distill.teacher_refresh > 0 and slow.lora_rank > 0,
            "with LoRA the teacher is the base with its adapters off, which stays as it is: set it "
            "to 0, or slow.lora_rank to 0",
        ),
        "slow.reference": (
            slow.reference == "offload",
            "distill.enabled is true, and the teacher is read for every micro-batch, so that it "
            "cannot wait in the host's memory: set it to copy",
        ),
        "slow.reference_refresh": (
            slow.reference_refresh > 0,
            "distill.enabled is true, and its loss has a teacher in place of a reference: set it "
            "to 0, and distill.teacher_refresh instead",
        ),
        "slow.reference_prompt": (
            slow.reference_prompt != "same",
            "distill.enabled is true, and its loss has a teacher in place of a reference: set it "
            "to same",
        ),
        "slow.kl_placement": (
            slow.kl_placement == "reward",
            "distill.enabled is true, and its loss takes no reward: set it to loss",
        ),
        "fast.reuse": (
            config.fast.enabled and config.fast.reuse,
            "distill.enabled is true, and rollouts of a fast round are the prompted teacher's, not "
            "the student's: set it to false",
        ),
    }
    return [(key, message) for key, (holds, message) in refused.items() if holds]


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
