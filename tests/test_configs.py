"""The paper's runs: each config passes a dry run, and its variants differ in one line."""

import re
from pathlib import Path

import pytest

from fst_jax.settings import difference, load, load_file
from fst_jax.slow.objectives import recipe
from tests.helpers import tiny_model_folder
from tests.task_samples import POLARIS, SCIKNOWEVAL, write_hover, write_jsonl
from tests.tiny_run import run

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = {  # K, G/K, anchors, metric calls, rollouts a step
    "codeio_qwen3_8b": (8, 1, 192, 960, 256),
    "hover_hard_qwen3_8b": (8, 1, 192, 960, 256),
    "physics_qwen3_8b": (4, 2, 192, 960, 256),
    "polaris_qwen3_8b_base": (4, 2, 96, 1500, 512),
    "star_graph_qwen3_4b": (8, 1, 192, 960, 256),
    "continual_qwen3_8b": (8, 1, 192, 960, 256),
}
DISTILL = ("--distill.enabled", "true")
NEEDS = {
    "codeio_qwen3_8b": ("reasoning_gym",),
    "hover_hard_qwen3_8b": ("bm25s",),
    "plasticity_hover_hard": ("bm25s",),
    "polaris_qwen3_8b_base": ("math_verify", "pyarrow"),
    "continual_qwen3_8b": ("bm25s", "reasoning_gym"),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_values(name: str) -> None:
    config = load_file(CONFIGS / f"{name}.yaml")
    rollout, fast, slow = config.rollout, config.fast, config.slow
    each = rollout.group_size // fast.population
    found = (
        fast.population,
        each,
        fast.anchors,
        fast.metric_calls,
        rollout.group_size * rollout.problems_per_step,
    )
    assert found == PAPER[name]
    assert (fast.cycle_steps, rollout.group_size) == (6, 8)
    assert (slow.objective, slow.learning_rate, slow.warmup_steps) == ("cispo", 1e-6, 10)
    assert (slow.kl_coefficient, slow.clip_threshold) == (1e-3, 4.0)
    assert (config.eval.temperature, config.eval.top_p) == (0.6, 0.95)
    assert config.eval.samples == (16 if name.startswith("continual") else 4)
    assert recipe(slow).normalize_std == (not name.startswith("polaris"))
    new_tokens = 4096 if name.startswith("star") else 8192
    assert (rollout.max_prompt_tokens, rollout.max_new_tokens) == (4096, new_tokens)


@pytest.mark.parametrize("name", [*PAPER, "plasticity_hover_hard"])
def test_variants_in_the_head_of_a_config_are_valid(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    base = load_file(path)
    variants = re.findall(r"^#   (--name .*)$", path.read_text(), re.MULTILINE)
    assert len(variants) >= (1 if name.startswith("plasticity") else 3)
    for line in variants:
        arguments = re.findall(r"'[^']*'|\S+", line)
        arguments = ["--config", str(path), *(argument.strip("'") for argument in arguments)]
        config, _ = load(arguments, "train", "")
        changed = {entry.partition(":")[0] for entry in difference(base, config)}
        assert "name" in changed and len(changed) >= 2
        assert config.name.startswith(name)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=40_960)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, as the configs name it: small, of the same form."""
    folder = tmp_path_factory.mktemp("work")
    write_jsonl(folder / "data/sciknoweval_v2_test.jsonl", _many(SCIKNOWEVAL))
    (folder / "data/polaris").mkdir()
    try:
        import pyarrow
        import pyarrow.parquet as pq

        table = pyarrow.Table.from_pylist(_many(POLARIS))
        pq.write_table(table, folder / "data/polaris/train-00000-of-00001.parquet")
        write_hover(folder / "data")
    except ImportError:  # their configs are skipped
        pass
    return folder


def _many(rows: list[dict]) -> list[dict]:
    """Enough rows for 200 test problems and some more."""
    field = "question" if "question" in rows[0] else "problem"
    return [{**row, field: f"{row[field]} ({i})"} for i in range(20) for row in rows]


# CodeIO runs hundreds of programs to find its problems, and the continual run holds it too.
@pytest.mark.parametrize(
    ("name", "more"),
    [
        *(
            pytest.param(name, (), marks=[pytest.mark.slow] if name.startswith("codeio") else [])
            for name in (*PAPER, "plasticity_hover_hard")
        ),
        *((name, DISTILL) for name in ("physics_qwen3_8b", "star_graph_qwen3_4b")),
    ],
)
def test_dry_run(
    name: str,
    more: tuple[str, ...],
    model_folder: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for library in NEEDS.get(name, ()):
        pytest.importorskip(library)
    monkeypatch.chdir(data)
    # The tiny tokenizer takes a token for almost every character.
    arguments = [
        "--config", str(CONFIGS / f"{name}.yaml"), "--model.path", str(model_folder),
        "--rollout.max_prompt_tokens", "8192", "--dry-run", *more,
    ]  # fmt: skip
    assert run(monkeypatch, arguments) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert re.search(r"task: \w+, \d+ train and \d+ test problems", shown)
    assert "memory over all devices" in shown
    assert not (data / "runs").exists()
