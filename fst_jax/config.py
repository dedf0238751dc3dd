"""Every setting, as typed dataclasses.

A run is described by one YAML file whose sections are named after the package's
folders, plus overrides on the command line (`--slow.learning_rate 3e-6`).  The
help of each field says where its default comes from: a section of the paper
(arXiv 2605.12484), another source, or "ours" with the reason.

Reading a file and the command line is in `fst_jax/settings.py`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Optimizer = Literal["adamw", "adamw_bfloat16", "adafactor"]
Remat = Literal["none", "dots", "full", "offload"]
Objective = Literal["cispo", "grpo", "dapo", "dr_grpo", "gspo", "rloo", "reinforce"]
Aggregation = Literal["problem", "token", "completion", "completion_sum", "constant"]
Baseline = Literal["problem", "prompt", "batch"]
Recipe = Literal["light", "full"]
Acceptance = Literal["lateral", "strict", "or_equal", "none"]
ParentChoice = Literal["pareto", "top_k_pareto", "best", "epsilon_greedy"]


def setting(default: Any, help: str) -> Any:
    """A dataclass field with a default and the text that `--help` and the docs show."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ModelSettings:
    path: str = setting(
        "models/SmolLM2-135M-Instruct",
        "Hugging Face folder with config.json, safetensors and tokenizer; or a hub id such as "
        "Qwen/Qwen3-4B-Instruct-2507, which is then downloaded.",
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "Compute dtype of the forward pass; parameters and optimiser stay float32, but for those "
        "that LoRA freezes, which are held in this dtype. bfloat16 on TPU and GPU; float32 is "
        "faster on most CPUs (ours, measured).",
    )
    remat: Remat = setting(
        "none",
        "What the backward pass computes anew, to save memory: none; dots: all but the outputs of "
        "linear layers; full: whole layers, about a third more compute; offload: as full, with the "
        "layers' inputs kept in the host's memory. Ours: none, since small models fit.",
    )
    chat_template: dict[str, Any] = setting(
        {}, "Extra arguments of the chat template, e.g. {enable_thinking: true} for Qwen3."
    )


@dataclass(frozen=True)
class TaskSettings:
    name: str = setting("star_graph", "Built-in task, e.g. star_graph or jsonl; see the README.")
    entry_point: str | None = setting(
        None, "Your own task instead of a built-in one: package.module:Class or path/file.py:Class."
    )
    options: dict[str, Any] = setting({}, "Arguments of the task's constructor.")
    seed_prompt: str | None = setting(
        None, "φ_seed, the prompt that the pool starts from; null takes the task's own."
    )
    timeout_s: float = setting(
        10.0,
        "Seconds that a scorer in a worker process (task.entry_point, reasoning_gym) may take for "
        "one answer before it is killed and counted as a time-out (ours).",
    )
    memory_gb: float = setting(
        4.0,
        "Memory in GB (10⁹ bytes) that a worker process of task.entry_point may allocate; one that "
        "needs more is ended and counted as out of memory. On Linux (ours: enough for a data set "
        "in memory, and not the machine's).",
    )


@dataclass(frozen=True)
class RolloutSettings:
    engine: Literal["local", "sglang"] = setting(
        "local",
        "Who samples: local is the in-process sampler (ours); sglang asks the servers of "
        "rollout.url, be they SGLang or python -m fst_jax.serve.",
    )
    url: str = setting(
        "http://127.0.0.1:30000",
        "Address of the model server; several, with commas between, share the work (ours: SGLang's "
        "usual port).",
    )
    weights_dir: str | None = setting(
        None,
        "Folder through which servers get new weights, which they must see under the same path: in "
        "it a folder of the run's name, for it alone. null: weights/ in the run's folder.",
    )
    api_key_env: str = setting(
        "FST_JAX_API_KEY", "Environment variable that holds the servers' key, if they need one."
    )
    timeout_s: float = setting(600.0, "Seconds to wait for one answer of a server (ours).")
    patience_s: float = setting(
        600.0,
        "Seconds for which a server may be down or answer badly before the run stops; it can then "
        "be resumed (ours: enough to start one anew).",
    )
    max_mismatch: float = setting(
        0.1,
        "Mean difference, in nats, between the server's and the learner's log-probabilities of the "
        "same tokens above which the run stops (ours: bfloat16 gives hundredths, a stale cache "
        "more than one).",
    )
    group_size: int = setting(8, "G, rollouts per problem and step, over all prompts (paper §4).")
    problems_per_step: int = setting(32, "Problems per step (paper §4: 32; math 64).")
    temperature: float = setting(
        1.0, "Sampling temperature in training. The paper does not say; ours: 1, full support."
    )
    max_new_tokens: int = setting(8192, "Longest completion, in tokens (paper app.: 8192).")
    max_prompt_tokens: int = setting(
        4096, "Longest context, system prompt included, in tokens (paper app.: 4096)."
    )
    batch_size: int = setting(
        64, "Sequences decoded at once. Ours: more is faster until memory ends."
    )


@dataclass(frozen=True)
class SlowSettings:
    enabled: bool = setting(True, "Train θ. false: the weights stay frozen (prompt-only).")
    objective: Objective = setting(
        "cispo",
        "Policy-gradient objective (paper §3: CISPO). Each brings its own aggregation, baseline, "
        "normalisation and clip range, which the settings of these names change; see "
        "docs/objectives.md.",
    )
    aggregation: Aggregation | None = setting(
        None,
        "Denominators of the loss: mean over a problem's tokens, then problems; over all tokens; "
        "over a completion's tokens, then completions; sum over a completion's tokens; sum over "
        "all tokens by a constant. null: the objective's own (cispo: problem, the paper's).",
    )
    minibatches: int = setting(
        1,
        "Parts that a step's problems are divided into, with an update for each (paper §4: one "
        "update per step).",
    )
    epochs: int = setting(
        1, "Passes over a step's rollouts, the first included (paper §4: one update per step)."
    )
    learning_rate: float = setting(1e-6, "Peak learning rate of AdamW (paper app.: 1e-6).")
    warmup_steps: int = setting(10, "Linear warm-up in updates, then constant (paper app.: 10).")
    optimizer: Optimizer = setting(
        "adamw",
        "adamw (paper app.); adamw_bfloat16: its first moment in bfloat16; adafactor: of a "
        "matrix's second moments only means over rows and columns, no first moment (arXiv "
        "1804.04235).",
    )
    adam_b1: float = setting(0.9, "AdamW first-moment decay (paper app.).")
    adam_b2: float = setting(0.999, "AdamW second-moment decay (paper app.).")
    weight_decay: float = setting(0.0, "AdamW weight decay (paper app.: 0).")
    max_grad_norm: float = setting(1.0, "Global-norm gradient clip (open in the paper; ours: 1).")
    clip_threshold: float = setting(
        4.0, "τ: importance ratios are cut here (paper: clip_high 3.0; ours reads τ = 1 + 3)."
    )
    clip_low: float | None = setting(
        None,
        "ε_low: ratios are clipped at 1 − ε_low from below. null: the objective's own (PPO's 0.2; "
        "GSPO's 3e-4). cispo, rloo and reinforce have no lower bound.",
    )
    clip_high: float | None = setting(
        None,
        "ε_high: ratios are clipped at 1 + ε_high from above. null: the objective's own (PPO's "
        "0.2; DAPO's 0.28; GSPO's 4e-4).",
    )
    importance_cap: float = setting(
        2.0,
        "Largest weight that corrects for the mismatch of sampler and learner, for rloo, "
        "reinforce and gspo, and for grpo, dapo and dr_grpo with several updates per step; "
        "cispo's is clip_threshold (verl's and Tunix's default: 2).",
    )
    kl_coefficient: float = setting(1e-3, "Weight of the KL regularizer to the base (paper app.).")
    kl_placement: Literal["loss", "reward"] = setting(
        "loss",
        "Where the KL regularizer is: a term of the loss, or taken off each rollout's reward, as "
        "k1 over the completion (open in the paper; ours: loss).",
    )
    kl_estimator: Literal["k1", "k2", "k3", "k3+"] = setting(
        "k3",
        "Estimator of the KL regularizer in the loss (open in the paper; ours: k3; on-policy, the "
        "gradient of k1 is zero on average). k3+ has the value of k3 and the gradient of k2, which "
        "is that of the KL.",
    )
    reference_prompt: Literal["same", "none"] = setting(
        "same",
        "What the regularizer's reference reads: the prompt that θ read (open in the paper; ours), "
        "or none: then θ is held to what the base says without φ, and the prompts' effect "
        "counts as drift.",
    )
    reference_refresh: int = setting(
        0,
        "Steps after which the weights of then become the regularizer's reference; 0: it stays the "
        "base (open in the paper; ours: never). Evaluation measures from the base always.",
    )
    baseline: Baseline | None = setting(
        None,
        "Advantage group: all G rollouts of a problem across prompts (paper's default), each "
        "prompt's G/K alone (its ablation, worse), or all of a step. null: the objective's own "
        "(reinforce: batch; all others: problem).",
    )
    normalize_std: bool | None = setting(
        None,
        "Divide advantages by the group's standard deviation (paper §3: yes; math: no). null: as "
        "the objective does (cispo, grpo, dapo, gspo), but not with kl_placement reward.",
    )
    normalize_batch: bool = setting(
        False,
        "Then divide all advantages of a step by their standard deviation (the paper mentions "
        "batch-level normalisation without a formula; ours: off).",
    )
    micro_batch_rows: int = setting(
        8, "Rows per micro-batch; the gradient is the same for any number, memory is not (ours)."
    )
    head_chunk: int = setting(
        1024,
        "Completion tokens per chunk of the vocabulary head, over all devices together: memory is "
        "two to four arrays of chunk × vocabulary, split among them (ours: of 0.6 GiB with 150,000 "
        "tokens).",
    )
    reference: Literal["copy", "offload"] = setting(
        "copy",
        "Where the reference waits: copy: on the devices, sharded like θ; offload: in the host's "
        "memory, on the devices only while it is evaluated. With LoRA the reference is the frozen "
        "base, and there is no copy (ours).",
    )
    lora_rank: int = setting(
        0,
        "Rank of LoRA adapters (arXiv 2106.09685), trained in place of the weights; 0: the weights "
        "themselves are trained (paper). Adapters want about ten times the learning rate (Schulman "
        "et al. 2025, LoRA Without Regret).",
    )
    lora_alpha: float = setting(
        32.0, "α: adapters are scaled by α / rank (ours: PEFT's usual value; open in the paper)."
    )
    lora_layers: str = setting(
        "attention|mlp",
        "Regular expression, searched for in the paths of linear layers: layers/attention/query, "
        "key, value, output, layers/mlp/gate, up, down, and head (ours: all but the head, as in "
        "QLoRA, arXiv 2305.14314).",
    )

    @property
    def trains_adapters(self) -> bool:
        """Whether LoRA adapters are trained, and the weights frozen."""
        return self.enabled and self.lora_rank > 0

    @property
    def updates_per_step(self) -> int:
        """Updates of θ from one step's rollouts."""
        return self.minibatches * self.epochs


@dataclass(frozen=True)
class SupervisedSettings:
    data: str | None = setting(
        None,
        'JSONL file of chats for `python -m fst_jax.sft`: {"messages": [{"role", "content"}, …]}, '
        "the last from the assistant, whose tokens are learned.",
    )
    optimizer: Literal["adamw", "muon"] = setting("adamw", "muon: Muon on matrices (ours).")
    learning_rate: float = setting(1e-5, "Peak learning rate (open in the paper; ours).")
    warmup_steps: int = setting(10, "Linear warm-up in steps, then constant (ours).")
    updates: int = setting(500, "Updates in all (ours).")
    batch_size: int = setting(32, "Chats per update (ours).")


@dataclass(frozen=True)
class FastSettings:
    enabled: bool = setting(True, "Evolve Φ. false: the seed prompt alone (RL-only).")
    population: int = setting(8, "K, prompts in use; divides G (paper tab.: 8; math, physics 4).")
    cycle_steps: int = setting(6, "T, RL steps between two fast rounds (paper tab.: 6).")
    anchors: int = setting(
        192, "Problems of the look-ahead on which prompts are scored (paper tab.: 192)."
    )
    metric_calls: int = setting(
        960,
        "Budget of a fast round in rollouts (paper tab.: 960); re-scoring carried prompts is "
        "counted apart.",
    )
    anchor_rollouts: int = setting(
        1,
        "Rollouts per anchor and prompt, whose mean is the score: more where the policy is noisy "
        "(open in the paper; ours: 1, GEPA's). All count in fast.metric_calls.",
    )
    minibatch: int = setting(
        8, "Rollouts under the parent that a proposal learns from (open in the paper; ours)."
    )
    proposals: int = setting(
        4, "Proposals made at a time, so that their rollouts share one batch (ours)."
    )
    recipe: Recipe = setting(
        "light",
        "What a proposal is: light: an incremental edit of its parent (paper §3); full: a free "
        "rewrite of it (the paper's ablation: no gain).",
    )
    parent: ParentChoice = setting(
        "pareto",
        "Who becomes a parent: drawn from the per-instance Pareto frontier (paper §3); from the "
        "frontier of the K best; the best by mean score; or the best, with chance 0.1 any "
        "(GEPA's selectors).",
    )
    acceptance: Acceptance = setting(
        "lateral",
        "Which children are scored on the anchors: strict: those better than their parent on its "
        "minibatch; or_equal: as good, too; lateral: the better ones, and where a batch has none, "
        "one as good; none: all (open in the paper; ours: lateral, as nothing moves by strict "
        "while all scores are 0).",
    )
    merge: bool = setting(
        False,
        "Let one proposal of a round's first batch, and of every batch after one that found a new "
        "prompt, merge the two prompts of the frontier that solve most together (open in the "
        "paper; GEPA's default: no).",
    )
    max_prompt_tokens: int = setting(
        512, "Longest prompt that a proposal may have, in tokens (open in the paper; ours)."
    )
    reuse: bool = setting(
        False,
        "Let RL groups claim the anchor rollouts of the cycle's fast round before they sample "
        "(paper app. F: as good, a fifth of all rollouts saved).",
    )
    reuse_staleness: int | None = setting(
        None,
        "Most steps on θ between the sampling of a rollout and its reuse; null: as many as a cycle "
        "has (paper app. F: until the next round).",
    )
    reflector: Literal["rules", "lm"] = setting(
        "rules",
        "Who proposes edits: lm asks the endpoint of fast.lm_url, as in the paper; rules needs no "
        "model (ours: runs offline).",
    )
    lm_url: str | None = setting(
        "http://127.0.0.1:30000/v1",
        "OpenAI-compatible base URL of the reflection model (ours: SGLang's usual port); null: the "
        "policy reflects on itself, at the first rollout.url. The paper's is frozen.",
    )
    lm_model: str = setting("default", "Model name sent to the reflection endpoint (ours).")
    lm_api_key_env: str = setting(
        "OPENAI_API_KEY",
        "Environment variable that holds the endpoint's key, if it needs one (OpenAI's name).",
    )
    lm_max_tokens: int = setting(
        2048, "Longest answer of the reflection model, in tokens (ours: a diagnosis and a prompt)."
    )
    lm_examples_tokens: int = setting(
        4000,
        "Longest selection of answers and feedback in one request, in tokens of the policy's "
        "tokenizer (ours).",
    )
    lm_options: dict[str, Any] = setting(
        {},
        "More fields of each request, e.g. {temperature: 0.7, chat_template_kwargs: "
        "{enable_thinking: false}}; null leaves a field out that is there by default, such as seed "
        "(ours: none, the endpoint's own defaults).",
    )
    lm_timeout_s: float = setting(120.0, "Seconds to wait for one answer before retrying (ours).")
    lm_price_in: float | None = setting(
        None,
        "Price of a million tokens of requests, in any currency, for reflection_cost in the "
        "metrics; null: no cost is computed, only tokens are counted.",
    )
    lm_price_out: float | None = setting(None, "Price of a million tokens of answers.")


@dataclass(frozen=True)
class DistillSettings:
    enabled: bool = setting(
        False,
        "FST-distill (paper eq. 8): in place of RL, θ learns to answer without the evolved prompts "
        "as the frozen model does under them; see docs/distillation.md.",
    )
    teacher_refresh: int = setting(
        0,
        "Steps after which the weights of then become the teacher's; 0: they stay the base's "
        "(paper eq. 8: the teacher is frozen; ours: never).",
    )
    student_prompt: Literal["none", "seed"] = setting(
        "none",
        "System prompt under which the student samples and learns: none (paper eq. 8: π_θ is given "
        "x alone) or the seed prompt, as RL alone has it.",
    )


@dataclass(frozen=True)
class ParallelSettings:
    mesh: dict[str, int] = setting(
        {"data": 1, "fsdp": -1, "tensor": 1},
        "Devices per mesh axis; one axis may be -1: all that are left (ours: fsdp, since it saves "
        "memory and needs no divisible heads). The axis context splits the tokens of long rows.",
    )
    coordinator: str | None = setting(
        None,
        "How the processes of a run on several hosts find each other: auto on TPU pods, SLURM, "
        "Open MPI and Kubernetes, as JAX finds them there; host:port of process 0 elsewhere; null: "
        "one process. `output` must then be a folder that all hosts see.",
    )
    processes: int | None = setting(
        None, "Number of processes, one a host, where parallel.coordinator is a host:port."
    )
    process: int | None = setting(
        None, "This process's number, from 0, where parallel.coordinator is a host:port."
    )
    start_timeout_s: float = setting(
        300.0, "Seconds to wait at the start for the other processes (JAX's own)."
    )


@dataclass(frozen=True)
class TrainSettings:
    steps: int = setting(500, "RL steps in all (paper: 500 to 1500).")


@dataclass(frozen=True)
class EvalSettings:
    every: int = setting(10, "Steps between evaluations; 0: only before and after (ours).")
    problems: int = setting(200, "Held-out problems per evaluation (paper: 200).")
    samples: int = setting(4, "k of mean@k and best@k (paper: 4).")
    temperature: float = setting(0.6, "Sampling temperature in evaluation (paper app.: 0.6).")
    top_p: float = setting(0.95, "Nucleus mass in evaluation (paper app.: 0.95).")


@dataclass(frozen=True)
class CheckpointSettings:
    every: int = setting(10, "Steps between checkpoints; 0: only at the end (ours).")
    keep: int = setting(2, "Newest checkpoints kept (ours: a damaged one has one before it).")
    keep_every: int = setting(
        0, "Checkpoints of steps divisible by this are kept for good, too; 0: none are (ours)."
    )
    export_every: int = setting(
        0,
        "Steps between weights that are kept for good, exports/<step>/, each a Hugging Face folder "
        "that model.path may name; 0: none, export/ alone holds the newest (ours).",
    )


@dataclass(frozen=True)
class WatchSettings:
    stop_within_s: float = setting(
        20.0,
        "Seconds after Ctrl-C or SIGTERM in which the step may end; then it is left, and the state "
        "before it is saved (ours: clouds give 30 before they take a machine back).",
    )
    stopped_exit: int = setting(
        0,
        "Exit code of a run that was asked to stop and has saved its state (ours: 0, since nothing "
        "failed). Schedulers that start again only what failed want another; those in launch/ give "
        "75, EX_TEMPFAIL of sysexits.h.",
    )
    notice_url: str | None = setting(
        None,
        "Address that says whether the machine is about to be taken back, which is then as SIGTERM "
        "is; on Google Cloud http://metadata.google.internal/computeMetadata/v1/instance/"
        "maintenance-event. null: nobody is asked.",
    )
    stall_s: dict[str, float] = setting(
        {
            "sync": 1800.0,
            "evolve": 1800.0,
            "rollout": 1800.0,
            "train": 3600.0,
            "evaluate": 1800.0,
            "checkpoint": 3600.0,
        },
        "Seconds in which nothing moves in a phase (no tokens, no answer, no update) after which "
        "the process dumps its stacks and ends; 0 or none: never (ours: far above what compiling "
        "takes).",
    )


@dataclass(frozen=True)
class GuardSettings:
    patience: int = setting(
        3,
        "Steps in a row in which a guard is broken before the run stops (ours: single steps have "
        "outliers; of three in a row, none of the recorded runs comes near a ceiling).",
    )
    max_mismatch: float | None = setting(
        1.0,
        "Ceiling of mismatch_k3, in nats a token: sampler against learner, on a step's own "
        "rollouts. null: none (ours: rollouts of older weights give up to 3e-4 on the small world, "
        "a bfloat16 sampler about 1e-3, other weights more than 1).",
    )
    max_kl: float | None = setting(
        10.0,
        "Ceiling of kl_k3, in nats a token: θ against its reference. null: none (ours: at most "
        "1.8 in three steps in a row of the small world's 216 recorded runs; at 10 the reference "
        "gives a token e^-10 of what θ does).",
    )


@dataclass(frozen=True)
class TrackingSettings:
    tensorboard: bool = setting(False, "Write tensorboard/ in the run folder (extra: track).")
    wandb_project: str | None = setting(None, "Send metrics to this W&B project (extra: track).")


@dataclass(frozen=True)
class Config:
    name: str = setting("run", "The run's folder below `output`.")
    output: str = setting("runs", "Folder of all runs.")
    seed: int = setting(0, "Seed of every random choice of the run.")
    model: ModelSettings = field(default_factory=ModelSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    slow: SlowSettings = field(default_factory=SlowSettings)
    sft: SupervisedSettings = field(default_factory=SupervisedSettings)
    fast: FastSettings = field(default_factory=FastSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    guards: GuardSettings = field(default_factory=GuardSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    @property
    def population(self) -> int:
        """K as used: the seed prompt alone when the fast weights are off."""
        return self.fast.population if self.fast.enabled else 1

    @property
    def rollouts_per_context(self) -> int:
        """Rollouts that a step samples of one context: G/K, or all G of the student's, if any."""
        return self.rollout.group_size // (1 if self.distill.enabled else self.population)

    @property
    def unprompted(self) -> bool:
        """Whether θ is to answer without any prompt."""
        return self.distill.enabled and self.distill.student_prompt == "none"
