"""Reading settings: every mistake is named with its place, and every config comes back exactly."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from fst_jax import plain_yaml, schema
from fst_jax.config import Config
from fst_jax.errors import ConfigError, UserError
from fst_jax.settings import command, difference, load, load_file, to_yaml


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def loaded(path: Path, *arguments: str) -> Config:
    return load(["--config", str(path), *arguments], "train", "Train.")[0]


def message(path: Path, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(path, *arguments)
    return str(caught.value)


def test_an_empty_file_gives_the_defaults(config_file):
    assert loaded(config_file("")) == Config()
    assert loaded(config_file("slow:\n")) == Config()


def test_values_of_every_type(config_file):
    path = config_file(
        "name: 007\nmodel: {dtype: bfloat16, chat_template: {enable_thinking: true}}\n"
        "slow:\n  learning_rate: 1e-5\n  weight_decay: 0\n  remat: &x\n"
    )
    assert "slow.remat: unknown setting; did you mean model.remat?" in message(path)
    path = config_file(path.read_text().replace("  remat: &x\n", ""))
    config = loaded(path)
    assert config.name == "007"
    assert config.model.dtype == "bfloat16"
    assert config.model.chat_template == {"enable_thinking": True}
    assert config.slow.learning_rate == 1e-5
    assert type(config.slow.weight_decay) is float


def test_unknown_keys_name_the_nearest_one_and_the_line(config_file):
    path = config_file("seed: 1\nslow:\n  learning_rte: 1.0\n")
    said = message(path)
    assert f"{path}:3: slow.learning_rte: unknown setting" in said
    assert "did you mean slow.learning_rate?" in said
    said = message(config_file(""), "--slow.learning_rte", "1")
    assert said.startswith("command line: slow.learning_rte: unknown setting; did you mean")
    assert "did you mean train.steps?" in message(config_file("steps: 3\n"))
    assert message(config_file("zzz: 1")).endswith("config.yaml:1: zzz: unknown setting")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slow: {enabled: 1}", "slow.enabled: expected true or false, not 1"),
        ("slow: {enabled: yes}", 'slow.enabled: expected true or false, not "yes"'),
        ("train: {steps: true}", "train.steps: expected a whole number, not true"),
        ("train: {steps: 1.5}", "train.steps: expected a whole number, not 1.5"),
        ("train: {steps: many}", 'train.steps: expected a whole number, not "many"'),
        ("train: {steps: null}", "train.steps: expected a whole number, not null"),
        ("slow: {learning_rate: true}", "slow.learning_rate: expected a number, not true"),
        ("slow: {learning_rate: .nan}", "slow.learning_rate: expected a number, not NaN"),
        ("slow: {learning_rate: '1'}", 'slow.learning_rate: expected a number, not "1"'),
        ("name: true", "name: expected text, not true"),
        ("name: null", "name: expected text, not null"),
        ("name: [a]", 'name: expected text, not ["a"]'),
        ("slow: {objective: ppo}", 'or rloo or reinforce, not "ppo"'),
        ("task: {seed_prompt: [x]}", 'task.seed_prompt: expected text or null, not ["x"]'),
        ("parallel: {mesh: {data: x}}", "expected a mapping with a whole number for each name"),
        ("parallel: {mesh: 8}", "expected a mapping with a whole number for each name, not 8"),
        ("task: {options: {1: 2}}", "task.options: expected a mapping with any value"),
        ("task: {options: {a: !!set {x}}}", "could not determine a constructor"),
        ("task: {options: {[]: 1}}", "task.options: found unhashable key"),
        ("seed: !!int x", "seed: cannot be read: invalid literal"),
        ("seed: 0x" + "f" * 9999, "a whole number of more than 64 bits"),
        ("slow: 3", "slow: is a section"),
        ("seed: 1\n? [a]\n: 2", "a setting's name must be plain text"),
    ],
)
def test_wrong_values(config_file, text, said):
    assert said in message(config_file(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minibatches: 5", "slow.minibatches: must divide rollout.problems_per_step = 32"),
        ("minibatches: 0", "slow.minibatches: must be at least 1, not 0"),
        ("epochs: 0", "slow.epochs: must be at least 1, not 0"),
        ("clip_low: 0.1", "slow.clip_low: cispo has no clip range: remove it, or choose another"),
        ("objective: dapo, clip_low: 1.0", "slow.clip_low: must be above 0 and below 1.0, not 1.0"),
        ("objective: rloo, clip_high: 0.1", "slow.clip_high: rloo has no clip range"),
        ("importance_cap: 0", "slow.importance_cap: must be above 0 and finite"),
        ("reference_refresh: -1", "slow.reference_refresh: must be at least 0, not -1"),
        ("reference_refresh: 5, kl_coefficient: 0", "slow.kl_coefficient is 0, so that no"),
    ],
)
def test_inconsistent_settings_of_the_objective(config_file, text, said):
    assert said in message(config_file(f"slow: {{{text}}}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("watch: {stall_s: {rolout: 1}}", "watch.stall_s.rolout: no phase has this name; they are"),
        ("watch: {stall_s: {train: -1}}", "watch.stall_s.train: must be at least 0 and finite"),
        ("watch: {stop_within_s: 0}", "watch.stop_within_s: must be above 0 and finite"),
        ("rollout: {engine: sglang, timeout_s: 1800}", "watch.stall_s.sync: must be above rollout"),
        ("fast: {reflector: lm, lm_timeout_s: 1900}", "watch.stall_s.evolve: must be above fast"),
        ("checkpoint: {keep_every: -1}", "checkpoint.keep_every: must be at least 0, not -1"),
    ],
)
def test_inconsistent_settings_of_the_watch(config_file, text, said):
    assert said in message(config_file(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("anchor_rollouts: 0", "fast.anchor_rollouts: must be at least 1, not 0"),
        ("anchor_rollouts: 5", "takes 976 rollouts: two minibatches and 960 on the anchors"),
        ("lm_examples_tokens: 99", "fast.lm_examples_tokens: must be at least 100, not 99"),
        ("lm_price_in: 1, lm_price_out: -1", "fast.lm_price_out: must be at least 0 and finite"),
        ("lm_price_in: 1", "fast.lm_price_out: a cost takes both prices"),
        ("lm_price_out: 1", "fast.lm_price_in: a cost takes both prices"),
        ("reflector: lm, lm_url: null", "fast.lm_url: null means the policy's own server"),
        ("reflector: lm, lm_url: localhost", "fast.lm_url: must begin with http:// or https://"),
        ("lm_options: {stream: true}", "fast.lm_options: stream is not to be set"),
        ("acceptance: lax", "expected lateral or strict or or_equal or none"),
        ("parent: any", "expected pareto or top_k_pareto or best or epsilon_greedy"),
        ("recipe: heavy", "expected light or full"),
    ],
)
def test_inconsistent_settings_of_the_fast_round(config_file, text, said):
    assert said in message(config_file(f"fast: {{{text}}}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patience: 0", "guards.patience: must be at least 1, not 0"),
        ("max_kl: 0", "guards.max_kl: must be above 0 and finite, not 0"),
        ("max_mismatch: .inf", "guards.max_mismatch: must be above 0 and finite, not inf"),
    ],
)
def test_inconsistent_settings_of_guards(config_file, text, said):
    assert said in message(config_file(f"guards: {{{text}}}"))
    assert loaded(config_file("guards: {max_kl: null, max_mismatch: null}")).guards.max_kl is None


@pytest.mark.parametrize("code", [-1, 126])
def test_the_exit_code_of_a_stopped_run(config_file, code):
    said = message(config_file(f"watch: {{stopped_exit: {code}}}"))
    assert f"watch.stopped_exit: must be in [0, 125], not {code}" in said


def test_the_policy_reflects_on_itself_where_it_is_served(config_file):
    text = "rollout: {engine: sglang}\nfast: {reflector: lm, lm_url: null, acceptance: none}"
    fast = loaded(config_file(text)).fast
    assert fast.lm_url is None and fast.acceptance == "none"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slow: {enabled: false}", "slow.enabled: distill.enabled is true, and the student's"),
        ("slow: {reference: offload}", "slow.reference: distill.enabled is true, and the teacher"),
        ("slow: {reference_refresh: 2}", "set it to 0, and distill.teacher_refresh instead"),
        ("slow: {kl_placement: reward}", "slow.kl_placement: distill.enabled is true"),
        ("slow: {reference_prompt: none}", "slow.reference_prompt: distill.enabled is true"),
        ("fast: {reuse: true}", "fast.reuse: distill.enabled is true, and rollouts of a fast"),
        ("distill: {teacher_refresh: -1}", "distill.teacher_refresh: must be at least 0, not -1"),
        ("slow: {lora_rank: 2}\ndistill: {teacher_refresh: 6}", "the base with its adapters off"),
        (
            "fast: {enabled: false}\ndistill: {student_prompt: seed}",
            "distill.student_prompt: with fast.enabled false the teacher has the seed prompt too",
        ),
    ],
)
def test_what_does_not_go_with_a_student_and_its_teacher(config_file, text, said):
    assert said in message(config_file(text), "--distill.enabled", "true")


def test_a_key_given_twice(config_file):
    assert "config.yaml:2: seed: given twice" in message(config_file("seed: 1\nseed: 2\n"))


def test_every_problem_is_listed(config_file):
    path = config_file("seed: x\nslow:\n  wrong: 1\n  weight_decay: -1\nfast: {population: 3}\n")
    said = message(path, "--eval.top_p", "2", "--what", "--seed", "stray")
    assert said.splitlines() == [
        "7 problems in the settings:",
        "  command line: what: unknown setting; did you mean watch?",
        f'  {path}:1: seed: expected a whole number, not "x"',
        f"  {path}:3: slow.wrong: unknown setting",
        '  command line: seed: expected a whole number, not "stray"',
        f"  {path}:4: slow.weight_decay: must be at least 0, not -1.0",
        "  command line: eval.top_p: must be in (0, 1]",
        f"  {path}:5: fast.population: K = 3 must divide rollout.group_size G = 8, since each "
        "prompt serves G/K rollouts of a problem",
    ]


def test_consequences_of_a_problem_are_left_out(config_file):
    said = message(config_file("rollout: {group_size: x}\nfast: {population: 3}\n"))
    assert said.count("\n") == 0 and "rollout.group_size: expected a whole number" in said


def test_the_command_line_wins(config_file):
    path = config_file("seed: 1\ntask: {options: {arms: 5, inner: {a: 1}}, seed_prompt: x}\n")
    arguments = ["--seed=2", "--task.options", "{nodes: 3}", "--task.options.inner.b", "[1]"]
    config = loaded(path, *arguments, "--train.steps", "7")
    assert config.seed == 2
    assert config.task.options == {"arms": 5, "nodes": 3, "inner": {"a": 1, "b": [1]}}
    assert loaded(path, "--parallel.mesh.data", "2").parallel.mesh == {
        "data": 2,
        "fsdp": -1,
        "tensor": 1,
    }
    assert loaded(path, "--parallel.mesh.fsdp", "-1").parallel.mesh["fsdp"] == -1


def test_text_on_the_command_line_is_taken_as_it_stands(config_file):
    path = config_file("task: {seed_prompt: x}")
    for text in ("Think: step by step # now", "", "{a", "5", "true"):
        assert loaded(path, "--task.seed_prompt", text).task.seed_prompt == text
    assert loaded(path, "--task.seed_prompt", "null").task.seed_prompt is None
    assert loaded(path, "--name", "null").name == "null"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed"], "seed: needs a value"),
        (["--seed", "--name", "x"], "seed: needs a value"),
        (["--config"], "config: needs a value"),
        (["--task.options.arms"], "task.options.arms: needs a value"),
        (["--slow", "1"], "slow: is a section"),
        (["--seed.more", "1"], "seed.more: unknown setting; did you mean seed?"),
        (["train"], "train: not a setting; write --section.field VALUE"),
        (["--", "x"], "--: not a setting"),
        (["--seed", ""], 'seed: expected a whole number, not ""'),
        (["--seed", "[1"], "seed: not valid YAML"),
        (["--name", "\udcff"], 'name: expected text, not "\\udcff"'),
        (["--dry-run=1"], "dry-run: unknown setting"),
    ],
)
def test_wrong_arguments(config_file, arguments, said):
    assert said in message(config_file(""), *arguments)


def test_flags(config_file):
    path = str(config_file("seed: 4"))
    flags = {"dry-run": "Only print."}
    config, given_flags = load(["--dry-run"], "train", "Train.", path, flags)
    assert (config.seed, given_flags) == (4, {"dry-run": ""})
    options = {"topology": "What to compile for."}
    arguments = ["--topology", "cpu:8", "--dry-run", "--seed", "5"]
    config, told = load(arguments, "plan", "Plan.", path, flags, options)
    assert (config.seed, told) == (5, {"dry-run": "", "topology": "cpu:8"})
    for arguments in (["--topology"], ["--topology", "--dry-run"]):
        with pytest.raises(ConfigError, match="topology: needs a value"):
            load(arguments, "plan", "Plan.", path, flags, options)


def test_files_that_cannot_be_read(config_file, tmp_path):
    assert "No such file or directory; choose one with --config" in message(tmp_path / "none.yaml")
    assert "cannot read the config file" in message(tmp_path)
    assert ":2: not valid YAML" in message(config_file("a: 1\n b: : 2"))
    assert "must hold settings as `key: value` lines" in message(config_file("[1, 2]"))
    assert "nested too deeply" in message(config_file("[" * 5000))
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not a text file in UTF-8" in message(path)
    assert "not valid YAML" in message(config_file("a: \x07"))


def test_help_shows_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        load(["--help"], "train", "Train a model.", flags={"dry-run": "Only print."})
    assert not caught.value.code
    shown = capsys.readouterr().out
    for key, setting in schema.settings().items():
        assert f"--{key}  " in shown and setting.help
    assert "--dry-run" in shown and "default 1e-06" in shown


def test_command_turns_user_errors_into_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--x"])

    def refuse(arguments: list[str]) -> None:
        raise UserError(f"no {arguments}")

    assert command(refuse) == 2
    assert capsys.readouterr().err == "error: no ['--x']\n"
    assert command(lambda _: None) == 0
    assert command(lambda _: 3) == 3


def test_difference():
    old, new = Config(), schema.build({"seed": 1})
    assert difference(old, old) == []
    assert difference(old, new) == ["seed: 0 → 1"]


def test_difference_names_entries_of_mappings():
    old = schema.build({"task.options": {"arms": 5, "nodes": 3}})
    new = schema.build({"task.options": {"arms": 6}, "slow.kl_coefficient": 0.5})
    assert difference(old, new) == [
        "task.options.arms: 5 → 6",
        "task.options.nodes: 3 → unset",
        "slow.kl_coefficient: 0.001 → 0.5",
    ]


texts = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**63)
    | strategies.floats(allow_nan=False)
    | texts
    | strategies.sampled_from(["1e-5", "no", "null", "~", "0x1", "2020-01-01", "- a", ".5", "\n"])
)
plain = strategies.recursive(
    scalars,
    lambda inner: (
        strategies.lists(inner, max_size=3) | strategies.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    strategies.dictionaries(texts, plain, max_size=4),
    texts,
    strategies.floats(0, exclude_min=True, allow_infinity=False),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_yaml_gives_every_config_back(tmp_path_factory, options, prompt, rate):
    values = {"task.options": options, "task.seed_prompt": prompt, "slow.learning_rate": rate}
    config = schema.build(values)
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = load_file(path)
    assert again == config
    assert repr(again) == repr(config)  # 1 and 1.0 and True are equal, but not the same


words = strategies.sampled_from(
    [*schema.settings(), *schema.sections(), "seed", "slow", "enabled", "mesh", "config", "x", "<<"]
)
documents = strategies.one_of(
    texts,
    strategies.text("ab:-{}[]?&*!|>'\"#%@, \n", max_size=30),
    strategies.dictionaries(words, plain | strategies.dictionaries(words, plain)).map(
        plain_yaml.dump
    ),
)
arguments = strategies.lists(
    words.map("--{}".format) | texts | strategies.builds("--{}={}".format, words, texts),
    max_size=4,
)


@given(documents, arguments)
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_but_config_errors(tmp_path_factory, document, arguments):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(document, encoding="utf-8", newline="")
    try:
        load(["--config", str(path), *arguments], "train", "Train.")
    except ConfigError as error:
        assert str(error)
    except SystemExit as stop:
        assert not stop.code and ("-h" in arguments or "--help" in arguments)
