"""The pool: frontier and top K against brute force, exact files, clear errors."""

import itertools
import json
import os

import pytest
from gepa.gepa_utils import remove_dominated_programs
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.errors import RunError
from fst_jax.fast.pool import Pool, Prompt

rewards = st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    problems = draw(st.integers(0, 6))
    count = draw(st.integers(1, 7))
    rows = draw(
        st.lists(
            st.lists(rewards, min_size=problems, max_size=problems),
            min_size=count,
            max_size=count,
        )
    )
    prompts = tuple(
        Prompt(
            text=f"prompt {i}",
            parent=None if i == 0 else Prompt("prompt 0").id,
            origin="seed" if i == 0 else "rules",
            created_step=i,
            scores={f"x{j}": score for j, score in enumerate(row)},
        )
        for i, row in enumerate(rows)
    )
    seed, rounds = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    return Pool(prompts, (prompts[-1].id,), step=3, rng_seed=seed, rounds=rounds)


def best_on(pool: Pool, problem: str) -> set[int]:
    scores = [prompt.scores[problem] for prompt in pool.prompts]
    return {i for i, score in enumerate(scores) if score == max(scores)}


@given(pools())
def test_the_frontier_is_what_gepa_keeps_and_no_prompt_of_it_can_be_spared(pool: Pool) -> None:
    fronts = {problem: best_on(pool, problem) for problem in pool.seed.scores}
    rank = {i: (prompt.mean_score, -i) for i, prompt in enumerate(pool.prompts)}
    kept = set().union(*remove_dominated_programs(fronts, rank).values()) if fronts else set()
    frontier = {pool.prompts.index(prompt) for prompt in pool.frontier()}
    assert frontier == kept
    assert all(front & frontier for front in fronts.values())
    for i in frontier:
        assert any(front & frontier == {i} for front in fronts.values())


@given(pools(), st.integers(1, 9))
def test_top_k_equals_brute_force(pool: Pool, k: int) -> None:
    frontier = pool.frontier()

    def better(a: Prompt, b: Prompt) -> bool:
        """Pairwise, from the definition."""
        if (a in frontier) != (b in frontier):
            return a in frontier
        if a in frontier:
            ca, cb = (
                sum(pool.prompts.index(p) in best_on(pool, x) for x in pool.seed.scores)
                for p in (a, b)
            )
            if ca != cb:
                return ca > cb
        if a.mean_score != b.mean_score:
            return a.mean_score > b.mean_score
        return pool.prompts.index(a) < pool.prompts.index(b)

    expected = next(
        order
        for order in itertools.permutations(pool.prompts)
        if all(better(a, b) for a, b in itertools.pairwise(order))
    )
    assert pool.top(k) == expected[:k]


@given(pools(), st.integers(1, 9))
def test_settled_keeps_the_seed_the_frontier_and_exactly_k_active(pool: Pool, k: int) -> None:
    after = pool.settled(k, step=12)
    assert len(after.active) == k and len(after.active_prompts) == k
    assert after.seed == pool.seed
    assert after.frontier() == pool.frontier()
    assert after.top(k) == pool.top(k)
    assert set(after.active) == {prompt.id for prompt in pool.top(k)}
    kept = [pool.seed, *pool.frontier(), *pool.top(k)]
    assert list(after.prompts) == [prompt for prompt in pool.prompts if prompt in kept]
    assert (after.step, after.rounds) == (12, pool.rounds + 1)


def test_a_short_pool_repeats_its_frontier_in_rank_order() -> None:
    seed = Prompt("seed", scores={"a": 0.0, "b": 0.0, "c": 0.0})
    first = Prompt("first", seed.id, "rules", 0, {"a": 1.0, "b": 1.0, "c": 0.0})
    second = Prompt("second", seed.id, "rules", 0, {"a": 0.0, "b": 0.0, "c": 1.0})
    pool = Pool((seed, first, second), (seed.id,)).settled(8, step=0)
    names = [prompt.text for prompt in pool.active_prompts]
    assert names == ["first", "second", "seed", "first", "second", "first", "second", "first"]


def test_the_start_is_the_seed_prompt_k_times() -> None:
    pool = Pool.start("Answer.", population=4, rng_seed=7)
    assert [prompt.text for prompt in pool.active_prompts] == ["Answer."] * 4
    assert pool.frontier() == () and pool.top(2) == (pool.seed,)
    assert pool.settled(4, step=0).active == pool.active


def test_rescoring_drops_every_old_score() -> None:
    pool = Pool.start("seed", 2, 0).rescored({Prompt("seed").id: {"a": 1.0, "b": 0.0}}, 1)
    pool = pool.with_prompts([Prompt("child", pool.seed.id, "lm", 0, {"a": 1.0, "b": 1.0})])
    pool = pool.settled(2, step=6)
    new = {prompt.id: {"c": 0.5} for prompt in pool.carried}
    again = pool.rescored(new, weight_version=7)
    assert [prompt.scores for prompt in again.prompts] == [{"c": 0.5}] * 2
    assert again.weight_version == 7
    assert [prompt.parent for prompt in again.prompts] == [None, pool.seed.id]
    with pytest.raises(ValueError, match="same problems"):
        pool.with_prompts([Prompt("other", scores={"a": 1.0})])
    with pytest.raises(KeyError):
        pool.rescored({pool.seed.id: {"c": 0.5}}, weight_version=7)


@given(pools(), st.lists(st.floats(0, 1), min_size=2, max_size=2), st.text(max_size=20))
def test_the_file_holds_everything(
    tmp_path_factory: pytest.TempPathFactory, pool: Pool, scores: list[float], text: str
) -> None:
    path = tmp_path_factory.mktemp("pool") / "pool" / "000012.json"
    pool.save(path)
    loaded = Pool.load(path)
    assert loaded == pool
    assert loaded.rng().getstate() == pool.rng().getstate()

    exact = Pool.start(text, 3, 1).rescored({Prompt(text).id: {"a": scores[0]}}, 5)
    exact.save(path)
    assert Pool.load(path) == exact


def test_the_file_has_the_contracted_keys(tmp_path) -> None:
    pool = Pool.start("Résumé 答え", 2, 3).rescored({Prompt("Résumé 答え").id: {"x": 0.25}}, 4)
    pool.save(tmp_path / "0.json")
    data = json.loads((tmp_path / "0.json").read_text(encoding="utf-8"))
    assert set(data) == {
        *("schema_version", "step", "weight_version", "prompts", "frontier", "active", "rng")
    }
    [prompt] = data["prompts"]
    assert set(prompt) == {"id", "text", "parent", "origin", "scores", "created_step"}
    assert prompt["scores"] == {"x": 0.25}
    assert data["frontier"] == [prompt["id"]] and data["active"] == [prompt["id"]] * 2


def test_every_round_has_random_numbers_of_its_own() -> None:
    pool = Pool.start("seed", 1, 0)
    draws = {pool.rng().random(), pool.settled(1, 0).rng().random()}
    draws.add(Pool.start("seed", 1, 1).rng().random())
    assert len(draws) == 3
    assert pool.rng().random() == Pool.start("other", 2, 0).rng().random()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "6.json"
    old = Pool.start("old", 1, 0)
    old.save(path)
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, function, fail)
            with pytest.raises(RunError, match="No space left"):
                Pool.start("new", 1, 0).save(path)
        assert Pool.load(path) == old
    Pool.start("new", 1, 0).save(path)
    assert Pool.load(path).seed.text == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["6.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=99), "schema_version 99"),
        (lambda d: d.pop("rng"), "'rng' is missing"),
        (lambda d: d["prompts"][0].pop("text"), "'text' is missing"),
        (lambda d: d["prompts"][0].update(text="edited"), "a text that is not its own"),
        (lambda d: d["prompts"][0].update(scores=3), "damaged"),
        (lambda d: d["prompts"][0].update(scores={"a": "high"}), "damaged"),
        (lambda d: d["prompts"][0].update(scores={"a": float("nan")}), "outside"),
        (lambda d: d.update(active=["p0"]), "active prompts are not all in the pool"),
        (lambda d: d.update(prompts=[]), "seed prompt"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, change, message) -> None:
    data = Pool.start("seed", 1, 0).to_json()
    change(data)
    path = tmp_path / "0.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RunError, match=message) as caught:
        Pool.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_or_not_json_is_refused(tmp_path) -> None:
    with pytest.raises(RunError, match="cannot read the pool file"):
        Pool.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"schema_version": 1, "prom')
    with pytest.raises(RunError, match="not JSON"):
        Pool.load(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(RunError, match="schema_version None"):
        Pool.load(tmp_path / "list.json")
