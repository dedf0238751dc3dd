"""The table of experiments: every claim of the paper and the runs that test it.

Settings of the method are in configs/small_world.yaml; here stands only what differs.  Arms are
told apart by `slow.enabled`, `fast.enabled` and `fast.reuse` alone.  A seed draws everything
anew: the problems, their order, the samples and the evolution.

Beyond the paper: several seeds, prompt evolution alone beside both arms, prompt rollouts counted,
a sweep that gives RL its best, and second tasks of two kinds.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ARMS: Mapping[str, Mapping[str, Any]] = {
    "rl": {"fast.enabled": False},
    "prompt": {"slow.enabled": False},
    "fst": {},
    "fst_reuse": {"fast.reuse": True},
}

# Steps of main runs: (RL alone, other arms).  A peak counts only once the curve has levelled off,
# which takes RL longest, above all where the poor strategy is paid every fourth time.
STEPS: Mapping[str, tuple[int, int]] = {
    "star_graph": (396, 264),
    "code_output": (240, 240),
    "two_hop": (240, 240),
}

# What a name of a variant, `population=1+kl=0`, sets; `from` is where a run starts, `kind` a label.
VARIED: Mapping[str, str | None] = {
    "population": "fast.population",
    "cycle_steps": "fast.cycle_steps",
    "anchors": "fast.anchors",
    "baseline": "slow.baseline",
    "learning_rate": "slow.learning_rate",
    "kl": "slow.kl_coefficient",
    "feedback": "task.options.feedback",
    "train_size": "task.options.train_size",
    "from": None,
    "kind": None,
}


@dataclass(frozen=True)
class Run:
    """One training run; its folder is <root>/<group>/<name>."""

    group: str
    task: str
    arm: str
    variant: Mapping[str, str]
    seed: int
    settings: Mapping[str, Any]  # by dotted key, on top of the base config

    @property
    def name(self) -> str:
        """<task>.<arm>[.<variant>].seed<k>"""
        variant = "+".join(f"{label}={value}" for label, value in self.variant.items())
        return ".".join(filter(None, [self.task, self.arm, variant, f"seed{self.seed}"]))

    @property
    def key(self) -> str:
        """The run's place below the root."""
        return f"{self.group}/{self.name}"

    @property
    def origin(self) -> tuple[str, str] | None:
        """(arm, "reward" or "step") of the checkpoint to start from; None: the base model."""
        arm, _, match = self.variant.get("from", "base").partition("@")
        return None if arm == "base" else (arm, match)

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the runs whose exports it may start from: both arms, to match their rewards."""
        if self.origin is None:
            return ()
        return tuple(f"main/{STAR[0]}.{arm}.seed{self.seed}" for arm in ("rl", "fst"))


@dataclass(frozen=True)
class Series:
    """Runs that differ in task, arm, variant and seed alone."""

    group: str
    tasks: Sequence[str]
    arms: Sequence[str]
    variants: Sequence[Mapping[str, str]] = ({},)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int | None = None  # at most
    in_quick: bool = True  # whether a quick try has it

    def runs(self, seed: int, quick: bool) -> Iterator[Run]:
        """The series' runs of one seed, or none where it has fewer."""
        if (self.seeds is not None and seed >= self.seeds) or (quick and not self.in_quick):
            return
        cut, variants = (QUICK, self.variants[-1:]) if quick else ({}, self.variants)
        for task in self.tasks:
            for arm, variant in itertools.product(self.arms, variants):
                own = {"train.steps": STEPS[task][arm != "rl"]} if self.group == "main" else {}
                settings = {**own, **self.settings, **cut, **ARMS[arm]}
                varied = {VARIED[label]: value for label, value in variant.items()}
                settings |= {key: value for key, value in varied.items() if key}
                settings |= _task(task, seed, settings)
                yield Run(self.group, task, arm, variant, seed, settings)


@dataclass(frozen=True)
class Experiment:
    """A claim and the series that test it."""

    claim: str
    series: Sequence[Series]

    def runs(self, seeds: int, quick: bool = False) -> list[Run]:
        """All runs, those of the first seed first, so that a part is worth something early."""
        count = 1 if quick else seeds
        return [
            run
            for seed in range(count)
            for series in self.series
            for run in series.runs(seed, quick)
        ]


def vary(text: str) -> list[dict[str, str]]:
    """Every combination of values: "population=1,2 kl=0,1e-3" are four variants."""
    axes = [pair.partition("=") for pair in text.split()]
    combined = itertools.product(*(values.split(",") for _, _, values in axes))
    labels = [label for label, _, _ in axes]
    return [dict(zip(labels, values, strict=True)) for values in combined]


def star_graph(*arms: str) -> Series:
    """Main runs of the first task; `plasticity` starts from their exports."""
    return Series("main", STAR, arms, settings={"checkpoint.export_every": 6})


def _task(task: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a task of the small world, or of the stream of them all."""
    if task != "stream":
        return {"task.name": f"tiny_{task}", "task.options.seed": seed}
    steps = settings["train.steps"] // len(TASKS)
    stages = [{"name": f"tiny_{t}", "steps": steps, "options": {"seed": seed}} for t in TASKS]
    return {"task.name": "stream", "task.options.stages": stages}


QUICK: Mapping[str, Any] = {"train.steps": 12, "eval.problems": 32}  # one seed, task and variant
TASKS = ("star_graph", "code_output", "two_hop")
STAR = TASKS[:1]
ORIGINS = "from=base,rl@reward,fst@reward,rl@step,fst@step"
SWEPT = {"train.steps": 240}
SWEPT_FST = {"train.steps": 96}
SHORT = {"train.steps": 60}  # ten cycles: variants are compared with main runs up to there
MAIN = (star_graph(*ARMS), Series("main", TASKS[1:], tuple(ARMS), in_quick=False))

# A variant with the settings of a run in `main` is that run, up to the variant's last step.
EXPERIMENTS: Mapping[str, Experiment] = {
    "efficiency": Experiment("FST reaches RL's peak with fewer rollouts", MAIN),
    "ceiling": Experiment("FST levels off higher than RL", MAIN),
    "drift": Experiment("FST stays closer to the base model at the same reward", MAIN),
    "quadrants": Experiment("where the gain lives: weights, prompts or the pair", MAIN),
    "signal": Experiment(
        "FST leaves zero first where the base is at zero",
        [
            Series(
                "signal", STAR, ("rl", "prompt", "fst"),
                settings=SHORT | {"task.options.hard": True},
            )
        ],
    ),
    "plasticity": Experiment(
        "RL learns a second task better from FST's weights than from RL's",
        [
            star_graph("rl", "fst"),
            Series(
                "plasticity", ("two_hop",), ("rl",), vary(f"{ORIGINS} kind=related"), SHORT
            ),
            Series(
                "plasticity", STAR, ("rl",), vary(f"{ORIGINS} kind=conflicting"),
                SHORT | {"task.options.answer_format": "curly"},
            ),
        ],
    ),
    "continual": Experiment(
        "FST goes on learning in a stream of tasks",
        [Series("continual", ("stream",), ("rl", "prompt", "fst"), settings={"train.steps": 180})],
    ),
    "ablations": Experiment(
        "several prompts, frequent rounds and a baseline per problem help",
        [
            star_graph("fst"),
            Series("ablations", STAR, ("fst",), vary("population=1,2,8"), SHORT),
            Series("ablations", STAR, ("fst",), vary("cycle_steps=3,12"), SHORT),
            Series("ablations", STAR, ("fst",), vary("baseline=prompt"), SHORT),
            Series("ablations", STAR, ("fst",), vary("anchors=12,48"), SHORT),
        ],
    ),
    "fewshot": Experiment(
        "how few training problems are enough",
        [Series("fewshot", STAR, ("rl", "prompt", "fst"), vary("train_size=4,8,16,64"), SHORT)],
    ),
    "reflector": Experiment(
        "what worse feedback costs",
        [
            star_graph("prompt", "fst"),
            Series("reflector", STAR, ("prompt", "fst"), vary("feedback=vague,random"), SHORT),
        ],
    ),
    "sweep": Experiment(
        "RL at its best learning rate and KL coefficient",
        [
            star_graph("rl", "fst"),
            Series("sweep", STAR, ("rl",), vary("learning_rate=1e-4,1e-3"), SWEPT, seeds=3),
            Series("sweep", STAR, ("rl",), vary("kl=0,1e-2,1e-1"), SWEPT, seeds=3),
            Series("sweep", STAR, ("fst",), vary("learning_rate=1e-4,1e-3"), SWEPT_FST, seeds=3),
        ],
    ),
}  # fmt: skip

DEMO = Experiment(
    "FST beside RL in a few minutes",
    [Series("main", STAR, ("fst", "rl"), settings={"train.steps": 24})],
)
