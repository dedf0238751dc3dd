"""How a base model is made, in miniature, and what the shipped one can do."""

import json

import pytest

from fst_jax.config import ParallelSettings
from fst_jax.errors import ModelError
from fst_jax.models.folder import load_config, load_tokenizer, resolve, stop_ids
from fst_jax.models.huggingface import load_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.rollout.chat import Chat
from fst_jax.rollout.local import LocalEngine
from fst_jax.small_world import base, card
from fst_jax.small_world.obedience import PROMPTS, following, instructed, obedience
from fst_jax.small_world.questions import KINDS


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """Base models of one narrow layer, trained for two steps a stage."""
    usual = base.architecture
    narrow = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "architecture", lambda vocabulary: usual(vocabulary) | narrow)
        for name in ("CHAIN_STEPS", "SINGLE_STEPS", "FULL_STEPS"):
            patch.setattr(base, name, 2)
        for name in ("SKILLED", "RIGHT", "OBEDIENT", "LEAST_OBEDIENT", "VERY_RIGHT"):
            patch.setattr(base, name, -1.0)
        patch.setattr(base, "TRIAL_QUESTIONS", 4)
        patch.setattr(card, "QUESTIONS", 4)
        folders = [tmp_path_factory.mktemp("base") / str(seed) for seed in (0, 0, 1)]
        for folder, seed in zip(folders, (0, 0, 1), strict=True):
            base.train_base(folder, seed)
    return folders


@pytest.mark.slow
def test_a_seed_gives_the_same_model_again(miniature):
    first, again, other = ((folder / "model.safetensors").read_bytes() for folder in miniature)
    assert first == again != other


@pytest.mark.slow
def test_the_folder_is_complete_and_its_card_shows_its_figures(miniature):
    folder = miniature[0]
    assert load_model(folder).config == load_config(folder)
    assert load_tokenizer(folder).chat_template
    assert stop_ids(folder) == [load_tokenizer(folder).eos_token_id]
    text = (folder / "README.md").read_text()
    [figures] = json.loads((folder / "figures.json").read_text())
    assert f"{following(figures['kinds']):.1%}" in text
    assert "### Seed 0" in text and "### Seed 1" not in text
    for label in PROMPTS:
        assert f"| {label} |" in text


@pytest.mark.slow
def test_a_card_shows_other_seeds_too(miniature, monkeypatch):
    monkeypatch.setattr(card, "QUESTIONS", 4)
    card.main([str(miniature[1]), str(miniature[2])])
    text = (miniature[1] / "README.md").read_text()
    assert "### Seed 0" in text and "### Seed 1" in text


def test_a_folder_without_a_base_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="small_world.base"):
        card.main([str(tmp_path)])


@pytest.fixture(scope="module")
def shipped():
    """Figures of fst-tiny on questions and samples that its card did not use."""
    folder = resolve("fst-tiny")
    chat = Chat(load_tokenizer(folder), stop_ids=stop_ids(folder))
    engine = LocalEngine(load_model(folder), make_mesh(ParallelSettings()), batch_size=128)
    return obedience(engine, chat, questions=32, seed=123)


def test_fst_tiny_is_small():
    files = [file for file in resolve("fst-tiny").iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8_000_000
    figures = json.loads((resolve("fst-tiny") / "figures.json").read_text())
    assert 500_000 < figures[0]["parameters"] < 3_000_000


def test_fst_tiny_follows_wordings_that_it_never_saw(shipped):
    assert following(shipped) >= 0.85


def test_fst_tiny_has_something_to_learn_in_both_ways(shipped):
    # Aimed at 40 to 70 %; 128 answers of each kind leave some 9 points of noise.
    for kind, right in zip(KINDS, instructed(shipped), strict=True):
        assert 0.31 < right < 0.81
        generic, format_alone = shipped[kind]["generic"], shipped[kind]["format"]
        assert generic["right"] < 0.05
        assert generic["good"] < 0.17
        assert right > 2 * format_alone["right"]
