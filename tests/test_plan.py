"""python -m fst_jax.plan: the contract of its JSON, memory as the compiler has it, and advice."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax
import pytest

from fst_jax.config import Config, Remat
from fst_jax.errors import ConfigError
from fst_jax.models.folder import load_config
from fst_jax.plan import devices
from fst_jax.planning import advice, report
from fst_jax.planning.advice import advise
from fst_jax.planning.flops import computed_pairs, step_flops
from fst_jax.planning.programs import (
    Model,
    compiled,
    full_batch,
    memory_needed,
    per_chip,
    sampler_programs,
    train_program,
)
from fst_jax.planning.report import Planned, Report, planned
from fst_jax.settings import load, load_file
from fst_jax.slow.packing import sides
from fst_jax.slow.policy import starting_shapes
from tests.helpers import tiny_model_folder
from tests.slow.tiny import one_device

ROOT = Path(__file__).parents[1]
CONTRACT = {
    "topology", "chips", "fits", "hbm_limit_bytes", "hbm_peak_bytes", "hbm", "flops_analytic",
    "flops_compiled", "collective_bytes", "step_seconds_roofline", "mfu_bound", "compile_seconds",
}  # fmt: skip
HBM = {"parameters", "optimizer", "reference", "activations", "temporaries"}
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that holds config.json alone."""
    folder = tiny_model_folder(
        tmp_path_factory.mktemp("model"), layers=6, max_position_embeddings=1024
    )
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    arguments = ["--config", str(ROOT / "configs/ci_tiny.yaml"), "--model.path", str(folder)]
    return load([*arguments, "--rollout.max_prompt_tokens", "256"], "plan", "")[0]


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fst_jax.plan", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"},
    )  # fmt: skip


def test_json_for_eight_devices(folder):
    """Also with the sampler left to a server, which then takes no part."""
    done = ask(
        "--config", "configs/ci_tiny.yaml", "--model.path", str(folder), "--topology", "cpu:8",
        "--parallel.mesh", "{fsdp: 4, tensor: 2}", "--rollout.engine", "sglang",
        "--rollout.max_prompt_tokens", "256", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= CONTRACT and set(found["hbm"]) >= HBM
    assert found["topology"] == "cpu:8" and found["chips"] == 8
    assert found["fits"] is found["hbm_limit_bytes"] is found["mfu_bound"] is None
    assert found["hbm_peak_bytes"] == sum(found["hbm"].values())
    assert found["hbm"]["parameters"] == found["hbm"]["reference"] > 0
    assert found["flops_compiled"] == pytest.approx(found["flops_analytic"], rel=0.01)
    assert found["flops_model"] < found["flops_analytic"]
    assert {"fsdp", "tensor"} <= set(found["collective_bytes"])
    assert [program["name"] for program in found["programs"]] == ["train step"]


def step_of(config: Config) -> tuple[Report, jax.stages.Compiled]:
    """The report of a train step on one device, and the same step compiled here."""
    mesh, architecture = one_device(), load_config(config.model.path)
    model = Model.of(config, architecture, mesh)
    batch = full_batch(config, architecture.hidden_size, mesh)
    lowered = train_program(config, model, batch, mesh)
    adapters = starting_shapes(model.params, config.slow)[0] if config.slow.lora_rank else None
    pairs, distills = computed_pairs(sides(batch).own, mesh), config.distill.enabled
    flops = step_flops(architecture, batch, config.model.remat, pairs, adapters, distills)
    step = planned(compiled(lowered, "cpu"), {}, mesh)
    return Report("cpu:1", mesh, [step], flops, []), lowered.compile()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_memory_is_what_the_compiler_says(config, remat):
    config = replace(config, model=replace(config.model, remat=remat))
    found, done = step_of(config)
    memory = done.memory_analysis()
    wanted = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    assert found.largest.peak == found.largest.compiled.peak == wanted
    hbm = found.largest.hbm
    assert hbm["optimizer"] == 2 * hbm["parameters"] + 3 * 4  # two moments, three counts
    given = found.largest.compiled.lowered.arguments
    assert sum(given.values()) == memory.argument_size_in_bytes
    assert found.step.cost.flops == pytest.approx(found.flops.executed, rel=0.01)
    text = found.to_text()
    assert "train step" in text and "no memory limit is known" in text


def test_activations_shrink_with_remat(config):
    mesh, architecture = one_device(), load_config(config.model.path)
    batch = full_batch(config, architecture.hidden_size, mesh)
    kept = {}
    for remat in get_args(Remat):
        own = replace(config, model=replace(config.model, remat=remat))
        model = Model.of(own, architecture, mesh)
        kept[remat] = train_program(own, model, batch, mesh).activations
    inputs = batch.tokens[0].size * architecture.hidden_size * 4  # of one layer
    assert architecture.num_layers * inputs <= kept["full"] < 2 * architecture.num_layers * inputs
    assert kept["none"] > 2 * kept["dots"] > 4 * kept["full"] and kept["offload"] == 0


def test_adapters_take_the_place_of_weights(config):
    """One frozen base, no reference, small moments; FLOPs without the gradients of weights."""
    whole, _ = step_of(config)
    adapted = replace(config, slow=replace(config.slow, lora_rank=4, lora_layers="attention|head"))
    found, done = step_of(adapted)
    hbm, given = found.largest.hbm, found.largest.compiled.lowered.arguments
    assert sum(given.values()) == done.memory_analysis().argument_size_in_bytes
    assert hbm["reference"] == 0 and hbm["parameters"] > whole.largest.hbm["parameters"]
    assert hbm["optimizer"] < whole.largest.hbm["optimizer"] / 2
    assert found.step.cost.flops == pytest.approx(found.flops.executed, rel=0.01)
    assert found.flops.model < whole.flops.model


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("which", ["distill", "unprompted reference", "distilled adapters"])
def test_steps_of_two_contexts(config, which, remat):
    """A teacher, or a reference, that reads another context than the weights that learn."""
    slow, distill = config.slow, replace(config.distill, enabled=which.startswith("distill"))
    if which == "unprompted reference":
        slow = replace(slow, reference_prompt="none")
    elif which == "distilled adapters":
        slow = replace(slow, lora_rank=4, lora_layers="attention|mlp")
    own = replace(config, slow=slow, distill=distill)
    own = replace(own, model=replace(config.model, remat=remat))
    found, done = step_of(own)
    given = found.largest.compiled.lowered.arguments
    assert sum(given.values()) == done.memory_analysis().argument_size_in_bytes
    assert found.step.cost.flops == pytest.approx(found.flops.executed, rel=0.01)
    if "adapters" not in which:
        alike, _ = step_of(replace(config, model=replace(config.model, remat=remat)))
        assert found.flops.model == alike.flops.model  # contexts are as long, heads as many
        assert given["batch"] > 1.5 * alike.largest.compiled.lowered.arguments["batch"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sampler_is_planned_for_its_longest(config, dtype):
    """Its arguments are told exactly, and nothing that both sides use is counted twice."""
    mesh = one_device()
    config = replace(config, model=replace(config.model, dtype=dtype))
    model = Model.of(config, load_config(config.model.path), mesh)
    programs = sampler_programs(config, model, mesh)
    assert [program.name for program in programs] == ["prefill", "decode", "rearrange"]
    weights = per_chip(model.params)
    state = {"parameters": weights, "optimizer": 2 * weights, "reference": weights}
    caches = set()
    for program in programs:
        done = compiled(program, "cpu")
        assert 0 <= done.arguments - sum(program.arguments.values()) < 0.02 * done.arguments
        found = planned(done, state, mesh)
        assert found.hbm["parameters"] == found.hbm["reference"] == weights
        shared = weights if dtype == "float32" and program.name != "rearrange" else 0
        beside = sum(program.beside.values())
        assert found.peak == 4 * weights - shared + beside + done.peak
        caches.add(found.hbm["sampler"])
    assert len(caches) == 1  # so short that the grid never grows


def test_useful_flops_are_those_of_what_is_seen(config):
    """Against a count of the mask, on rows of different lengths."""
    from fst_jax.models.row_attention import row_mask
    from fst_jax.slow.packing import pack
    from tests.slow.tiny import make_samples

    architecture = load_config(config.model.path)
    batch = pack(make_samples(), per_row=2, micro_batch_rows=3)
    length = batch.tokens.shape[2]
    rows = (batch.segments.reshape(-1, length), batch.parents.reshape(-1, length))
    seen = int(row_mask(*rows, rows[0])[rows[0] > 0].sum())
    tokens = int((batch.segments > 0).sum())
    targets = int((batch.token_weight > 0).sum())
    layer = 2 * 32 * (2 * 32 + 2 * 16 + 3 * 64)  # sizes of tests.helpers.tiny_config
    wanted = 4 * (6 * (tokens * layer + seen * 4 * 32) + targets * 2 * 32 * 300)
    assert step_flops(architecture, batch, remat="none", pairs=length**2).model == wanted


# Advice


def step_like(config: Config, mesh, lowered, **hbm: float) -> Planned:
    """A train step that was refused, of so many GiB."""
    sizes = dict.fromkeys(report.KINDS, 0) | {kind: int(x * GIB) for kind, x in hbm.items()}
    return Planned(report.Compiled(lowered, 1.0, 0, 0, None), sizes, None, None)


@pytest.fixture
def advised(config, monkeypatch):
    mesh = one_device()
    monkeypatch.setattr(advice, "memory_limit", lambda mesh: 16 * GIB)
    model = Model.of(config, load_config(config.model.path), mesh)

    def ask(config: Config = config, **hbm: float) -> str:
        batch = full_batch(config, 32, mesh)
        lowered = train_program(config, model, batch, mesh)
        step = step_like(config, mesh, lowered, **hbm)
        return "\n".join(advise(config, 300, batch, mesh, [step]))

    return ask


def test_advice_follows_from_the_figures(config, advised):
    # 8 rows take 40 GiB beside 4 of state and 1 of gradients: 5 GiB a row, and 11 are left.
    said = advised(parameters=1, optimizer=2, reference=1, activations=32, temporaries=9)
    assert "slow.micro_batch_rows: 2 instead of 8" in said and "5.00 GiB for each" in said
    assert "model.remat: full" in said and "32.00 GiB now" in said
    assert "model.dtype: bfloat16" in said and "chips" not in said
    lean = replace(config, model=replace(config.model, remat="full", dtype="bfloat16"))
    said = advised(lean, parameters=1, optimizer=2, reference=1, activations=32, temporaries=9)
    assert "model.remat: offload moves the inputs of layers, 32.00 GiB" in said
    assert "model.dtype" not in said

    one = replace(lean, slow=replace(lean.slow, micro_batch_rows=1))
    said = advised(one, parameters=1, optimizer=2, reference=1, activations=12, temporaries=9)
    assert "micro_batch_rows" not in said and "parallel.mesh.context: 2" in said

    said = advised(lean, parameters=8, optimizer=16, reference=8, activations=1, temporaries=7)
    assert "parallel.mesh.fsdp: 4 chips" in said
    assert "slow.lora_rank: 32" in said and "of 24.00 GiB now" in said
    assert "slow.optimizer: adafactor" in said and "slow.reference: offload" in said
    said = advised(lean, parameters=1, optimizer=2, reference=1, temporaries=1, sampler=20)
    assert "rollout.batch_size: 32" in said


def test_refusals_of_the_compiler_are_read():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (34.67G) exceeds available HBM (31.25G)."
    )
    assert memory_needed(said, 5) == int(34.67 * GIB)
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.00G of 31.25G hbm."
    assert memory_needed(said, GIB) == 39 * GIB
    assert memory_needed("INTERNAL: something else", 5) is None


# TPU


def test_shipped_plan_config_names_its_model():
    config = load_file(ROOT / "configs/codeio_qwen3_8b_tpu.yaml")
    paper = load_file(ROOT / "configs/codeio_qwen3_8b.yaml")
    assert config.rollout.group_size * config.rollout.problems_per_step == 256
    assert (config.task, config.fast, config.train) == (paper.task, paper.fast, paper.train)
    architecture = load_config(ROOT / "configs/models/Qwen3-8B")
    assert (architecture.num_layers, architecture.hidden_size) == (36, 4096)


@pytest.mark.parametrize("topology", ["v9:2x2", "v5p", "v5p:4", "cpu", "cpu:0", "gpu:8", "v5p:4x"])
def test_unknown_topologies_are_refused(topology):
    with pytest.raises(ConfigError, match="must be cpu:N or one of"):
        devices(topology)


HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is here")
def test_without_libtpu_it_says_what_to_install(folder):
    done = ask("--topology", "v5p:2x2x1", "--model.path", str(folder))
    assert done.returncode == 2 and "pip install 'fst_jax[tpu]'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not HAS_LIBTPU,
    reason="NOT TESTED: no libtpu to compile for TPUs with: pip install 'fst_jax[tpu]'",
)
def test_a_tpu_slice(folder):
    """Compiled for chips that are not here; too large a micro-batch is refused, with advice."""
    arguments = [
        "--config", "configs/ci_tiny.yaml", "--model.path", str(folder), "--topology", "v5e:2x2",
        "--model.dtype", "bfloat16", "--rollout.engine", "sglang", "--json",
    ]  # fmt: skip
    done = ask(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] is True and found["advice"] == []
    assert found["hbm_limit_bytes"] == int(15.75 * GIB)
    assert 0 < found["mfu_bound"] < 1 and found["step_seconds_roofline"] > 0
    assert found["flops_compiled"] == pytest.approx(found["flops_analytic"], rel=0.1)
    large = [
        "--slow.micro_batch_rows", "8192", "--rollout.problems_per_step", "4096",
        "--fast.metric_calls", "960",
    ]  # fmt: skip
    done = ask(*arguments, *large)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] is False and found["hbm_peak_bytes"] > found["hbm_limit_bytes"]
    assert "slow.micro_batch_rows" in found["advice"][0]


def test_a_run_without_programs_is_told_so(folder):
    off = ("--slow.enabled", "false", "--rollout.engine", "sglang")
    done = ask(
        "--config", "configs/ci_tiny.yaml", "--model.path", str(folder), "--topology", "cpu:8", *off
    )
    assert done.returncode == 2 and "compiles nothing" in done.stderr
    assert "Traceback" not in done.stderr
