"""The report as a whole: files, page and command, and that committed claims come out again."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fst_jax.errors import RunError
from fst_jax.report import main, report
from fst_jax.reporting.claims import derive
from fst_jax.reporting.page import render
from fst_jax.reporting.runs import find, read_all
from fst_jax.reporting.table import markdown
from tests.reporting.synthetic import Curve, Plan, flat, write_run

RECORDED = Path(__file__).parents[1] / "reproduction"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements nest and gathers everything that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.loads += [value or "" for name, value in attrs if name in names]
        self.loads += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for _, value in attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] == "style":
            assert "@import" not in data
            self.loads += re.findall(r"url\(([^)]*)\)", data)


def page_of(folder: Path) -> str:
    """The page of one run, without figures."""
    runs, left_out = read_all(find([folder]))
    return render(runs, derive(runs), [], left_out)


def rise(high: float, middle: float) -> Curve:
    return lambda t: high / (1 + (middle / t) ** 3) if t else 0.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small reproduction with every group."""
    root = tmp_path_factory.mktemp("world")
    stages = [{"name": name, "options": {}, "steps": 30} for name in ("a", "b")]
    stream = {"task": {"name": "stream", "options": {"stages": stages}}}
    for k in range(2):
        middle = 20 + 3 * k
        for arm in ("rl", "prompt", "fst"):
            own = rise(0.7, middle if arm == "rl" else middle / 3)
            plan = Plan(arm, own=own, seeded=flat(0.05))
            options = {"task": {"options": {"train_size": 8}}}
            write_run(root / f"main/star_graph.{arm}.seed{k}", plan, compressed=True)
            write_run(root / f"signal/star_graph.{arm}.seed{k}", plan)
            write_run(
                root / f"fewshot/star_graph.{arm}.train_size=8.seed{k}",
                Plan(arm, own=own, settings=options),
            )
            tasks = {"a": own, "b": rise(0.5, middle)}
            write_run(
                root / f"continual/stream.{arm}.seed{k}",
                Plan(arm, tasks=("a", "b"), task_own=tasks, settings=stream),
            )
        for group, arm, variant in (
            ("ablations", "fst", "population=1"),
            ("reflector", "fst", "feedback=vague"),
            ("sweep", "rl", "learning_rate=1e-3+kl=0"),
        ):
            name = f"{group}/star_graph.{arm}.{variant}.seed{k}"
            write_run(root / name, Plan(arm, own=rise(0.6, 9)))
        for origin in ("base", "rl@reward", "fst@reward"):
            name = f"plasticity/two_hop.rl.from={origin}+kind=related.seed{k}"
            write_run(root / name, Plan("rl", own=rise(0.5, middle)))
    return root


@pytest.fixture(scope="module")
def made(world: Path) -> Path:
    """The report of that reproduction."""
    report([world], world / "report")
    return world / "report"


def test_every_figure_is_made_as_png_and_svg(made: Path) -> None:
    names = {
        "overview", "efficiency", "ceiling", "frontier", "quadrants", "plasticity", "continual",
        "signal", "entropy", "ablations", "reflector", "fewshot", "sweep", "cost",
    }  # fmt: skip
    assert {path.stem for path in made.glob("*.png")} == names
    assert {path.stem for path in made.glob("*.svg")} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made.glob("*.png"))


def test_the_page_is_whole_and_asks_the_network_for_nothing(made: Path) -> None:
    page = Page((made / "index.html").read_text())
    assert page.open == []
    assert page.loads and all(load.startswith("#") for load in page.loads)  # parts of its figures
    assert {"Claims", "Sample efficiency", "A stream of tasks"} <= set(page.headings)
    assert "Run star_graph.fst.seed0" in page.headings


def test_the_page_follows_the_windows_colours(made: Path) -> None:
    text = (made / "index.html").read_text()
    assert "prefers-color-scheme: dark" in text
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(figures) > 13
    for figure in figures:
        assert "currentColor" in figure
        assert "#ffffff" not in figure.split("<defs>")[0]  # no white ground under a dark page


def test_the_claims_come_out_again(made: Path, world: Path) -> None:
    claims = json.loads((made / "claims.json").read_text())
    assert claims == derive(read_all(find([world]))[0])
    assert {"sample_efficiency", "ceiling", "kl_at_matched_reward", "plasticity", "continual",
            "quadrants", "ablations", "signal", "fewshot", "reflector", "sweep", "prompt_only",
            "cost"} <= claims.keys()  # fmt: skip


def test_the_report_of_one_ordinary_run(finished: Path, tmp_path: Path) -> None:
    claims = report([finished / "ci_tiny"], tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    text = (tmp_path / "index.html").read_text()
    assert page.open == [] and all(load.startswith("#") for load in page.loads)
    assert claims["runs"]["ci_tiny"]["finished"]
    assert {"Sample efficiency", "Where the gain lives", "Run ci_tiny"} <= set(page.headings)
    assert "Family of prompts" in text and "Held-out rollouts before and after" in text
    assert {path.stem for path in tmp_path.glob("*.png")} >= {"efficiency", "quadrants", "cost"}


def test_text_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    settings = {"task": {"seed_prompt": "<script>alert(1)</script>"}}
    write_run(tmp_path / "run", Plan("rl", settings=settings))
    text = page_of(tmp_path / "run")
    assert "<script" not in text and "&lt;script&gt;" in text


def test_an_unfinished_run_is_shown_and_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Plan("fst", stop=20))
    assert "20 of 60 steps" in page_of(tmp_path / "run")


def test_the_command_writes_beside_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "run", Plan("rl"))
    main([str(tmp_path / "run")])
    assert (tmp_path / "run/report/index.html").is_file()
    assert "index.html" in capsys.readouterr().out


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "main/task.rl.seed0", Plan("rl", stop=20))
    with pytest.raises(RunError, match="no run is complete"):
        report([tmp_path], tmp_path / "report")
    (tmp_path / "file").touch()
    write_run(tmp_path / "run", Plan("rl"))
    with pytest.raises(RunError, match="cannot write the report"):
        report([tmp_path / "run"], tmp_path / "file/report")


@pytest.mark.skipif(
    not (RECORDED / "claims.json").is_file(), reason="no results of the reproduction are recorded"
)
def test_recorded_claims_come_out_of_recorded_runs() -> None:
    def same(recorded: Any, derived: Any, place: str) -> None:
        if isinstance(recorded, dict):
            assert isinstance(derived, dict) and recorded.keys() == derived.keys(), place
            for key in recorded:
                same(recorded[key], derived[key], f"{place}.{key}")
        elif isinstance(recorded, list):
            assert isinstance(derived, list) and len(recorded) == len(derived), place
            for i, pair in enumerate(zip(recorded, derived, strict=True)):
                same(*pair, f"{place}[{i}]")
        elif isinstance(recorded, float):
            # Recorded to six decimals, of which machines may round the last differently.
            assert math.isclose(recorded, derived, rel_tol=0, abs_tol=2e-6), place
        else:
            assert recorded == derived, place

    runs, left_out = read_all(find([RECORDED]))
    assert not left_out
    same(json.loads((RECORDED / "claims.json").read_text()), derive(runs), "claims")


@pytest.mark.skipif(
    not (RECORDED / "claims.json").is_file(), reason="no results of the reproduction are recorded"
)
def test_the_documented_table_is_that_of_the_recorded_claims() -> None:
    table = markdown(json.loads((RECORDED / "claims.json").read_text()))
    assert table in (RECORDED.parent / "docs/reproduction.md").read_text()
