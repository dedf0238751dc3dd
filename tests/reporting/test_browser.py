"""The page as a real browser draws it: narrow and wide, light and dark, with hard texts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fst_jax.reporting.claims import derive
from fst_jax.reporting.figures import all_figures
from fst_jax.reporting.page import render
from fst_jax.reporting.runs import find, read_all
from tests.reporting.browser import NAMES, Tab, browser, executable
from tests.reporting.hard_run import write_hard_run
from tests.reporting.synthetic import Plan, write_run

CHECKS = Path(__file__).with_name("page_checks.js")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        executable() is None, reason=f"no browser on PATH: none of {', '.join(NAMES)}"
    ),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(executable() or "", tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of a run with hard texts, of RL alone, of a run just begun, and of experiments."""
    root = tmp_path_factory.mktemp("pages")
    write_hard_run(root / "hard" / ("a_run_with_quite_a_long_name_" * 3))
    write_run(root / "rl/rl_alone", Plan("rl", steps=600, rollouts=123_456))
    write_run(root / "begun/begun", Plan("fst", stop=0))
    for arm in ("rl", "prompt", "fst", "fst_reuse"):
        for seed in range(2):
            own = [lambda step, at=seed: min(1.0, step / 50 + at / 20), None][arm == "prompt"]
            plan = Plan(arm, own=own) if own else Plan(arm)
            write_run(root / f"many/main/star_graph.{arm}.seed{seed}", plan, seed=seed)
            variant = f"many/ablations/star_graph.{arm}.population=1.seed{seed}"
            write_run(root / variant, plan, seed=seed)
    names = ("hard", "rl", "begun", "many")
    return {name: _page(root / name, root / f"{name}.html") for name in names}


def _page(place: Path, page: Path) -> Path:
    runs, left_out = read_all(find([place]))
    page.write_text(render(runs, derive(runs), all_figures(runs), left_out), encoding="utf-8")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1600])
@pytest.mark.parametrize("name", ["hard", "rl", "begun", "many"])
def test_nothing_is_clipped_covered_or_pale(
    tab: Tab, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    _is_well_drawn(tab, pages[name], width, scheme)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_a_real_run_is_well_drawn(
    tab: Tab, finished: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    page = _page(finished / "ci_tiny", tmp_path / "page.html")
    _is_well_drawn(tab, page, width, scheme)


def _is_well_drawn(tab: Tab, page: Path, width: int, scheme: str) -> None:
    tab.open(page, width, scheme)
    assert tab.value("innerWidth") == width
    assert tab.value(CHECKS.read_text()) == []
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]


SABOTAGE = {
    "has a contrast of 2.85": "document.querySelector('svg').style.color = '#999'",
    "contrast of 1.00": "document.body.style.color = '#fff'",
    '"0" is clipped': "move('g.text', -200, 0)",
    "lies over": "move('g.text:not(.xtick *)', 0, -10)",
    "the legend lies over the data": "move('.legend', 0, -80)",
    "neither what nor in what unit": "document.querySelector('g.text:not(.xtick *)').remove()",
    "px wide": "document.querySelector('h2').style.width = '900px'",
}


@pytest.mark.parametrize("found", SABOTAGE)
def test_what_is_wrong_is_found(tab: Tab, pages: dict[str, Path], found: str) -> None:
    tab.open(pages["rl"], 400, "light")
    tab.value("""window.move = (which, x, y) =>
      document.querySelector(which).setAttribute("transform", `translate(${x} ${y})`)""")
    tab.value(SABOTAGE[found])
    assert any(found in wrong for wrong in tab.value(CHECKS.read_text()))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_scheme(tab: Tab, pages: dict[str, Path], scheme: str) -> None:
    tab.open(pages["many"], 900, scheme)
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 20, 23)"}[scheme]
    fill = "getComputedStyle(document.querySelector('svg g.text use')).fill"
    assert tab.value(fill) == tab.value("getComputedStyle(document.body).color")


def test_text_of_a_run_stays_text(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["hard"], 900, "light")
    assert tab.value("document.title") == "Fast-Slow Training: report"
    assert tab.value("document.querySelectorAll('script, img').length") == 0


def test_a_line_runs_in_its_own_direction(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["hard"], 900, "light")
    found = tab.value("""(() => {
      const text = document.querySelector(".prompts pre").firstChild;
      const at = text.data.indexOf("\\u0627\\u0628\\u062f\\u0623");  // the first Arabic word
      const range = document.createRange();
      const place = (start) => {
        range.setStart(text, start);
        range.setEnd(text, start + 1);
        return range.getBoundingClientRect().left;
      };
      return [place(0) - text.parentElement.getBoundingClientRect().left,
              text.parentElement.getBoundingClientRect().right - place(at)];
    })()""")
    latin, arabic = found
    assert 0 <= latin < 20 and 0 <= arabic < 40  # each begins at its own edge


def test_it_prints_light_and_whole(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["hard"], 900, "dark")
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "none"
