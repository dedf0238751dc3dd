"""The documentation site, built as `make docs` builds it."""

import html
import html.parser
import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from fst_jax import schema

PluginError = pytest.importorskip(
    "mkdocs.exceptions", reason="needs mkdocs: `make setup` installs it"
).PluginError

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("http:", "https:", "//")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the built site; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Page(html.parser.HTMLParser):
    """What a page loads, the anchors in it, and the classes of its code blocks."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        self.classes.update(given.get("class", "").split())
        names = ["src", "srcset", "data", "poster", *(["href"] if tag in ("link", "use") else [])]
        if given.get("rel") not in ("canonical", "prev", "next"):  # which lead elsewhere, and wait
            self.loads += [given[name] for name in names if name in given]


def test_every_setting_has_its_place(site):
    ids = Page(site / "configuration.html").ids
    assert set(schema.settings()) <= ids


def test_a_help_text_is_shown_as_it_is(site):
    text = re.sub(r"<[^>]+>", "", (site / "configuration.html").read_text("utf-8"))
    for key in ("slow.clip_low", "model.chat_template", "eval.top_p", "watch.stall_s"):
        start = schema.settings()[key].help[:40]
        assert html.unescape(start) in html.unescape(text)


def test_nothing_is_loaded_from_another_host(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        assert not [place for place in page.loads if place.startswith(ELSEWHERE)], path
        assert [place for place in page.loads if place.endswith(".css")], path
        assert "mermaid" not in page.classes, f"{path}: its renderer would be fetched"
    for path in site.rglob("*.css"):
        text = path.read_text("utf-8")
        assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//|@import", text), path


def test_every_page_is_in_the_navigation_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    entries = [page for section in nav for pages in section.values() for page in pages]
    named = [next(iter(e.values())) if isinstance(e, dict) else e for e in entries]
    of_the_root = {"CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(named) == sorted(pages | of_the_root)


def test_links_to_sources_are_their_paths(site):
    for path in site.glob("*.html"):
        assert 'href="../' not in path.read_text("utf-8"), path
    serving = (site / "serving.html").read_text("utf-8")
    assert 'href="SECURITY.html"' in serving
    reproduction = (site / "reproduction.html").read_text("utf-8")
    assert "<code>configs/small_world.yaml</code>" in reproduction


@pytest.fixture
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_that_leaves_settings_out_is_refused(hooks):
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert "`slow.objective`" not in page
    assert 'id="slow.objective"' in hooks.with_settings(page)
    for wrong in ("", "<!-- settings: slow -->\n", "<!-- settings: slwo -->\n"):
        with pytest.raises(PluginError, match="configuration.md has the settings of"):
            hooks.with_settings(page.replace("<!-- settings: fast -->\n", wrong))


def test_a_link_to_a_file_that_is_gone_is_refused(hooks):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="tasks.md"))
    text = "[the task](../fst_jax/tasks/task.py#L3), [limits](../SECURITY.md#limits)"
    shown = hooks.on_page_markdown(text, page)
    assert shown == "the task (`fst_jax/tasks/task.py`), [limits](SECURITY.md#limits)"
    with pytest.raises(PluginError, match=r"tasks.md links to ../none.py"):
        hooks.on_page_markdown("[gone](../none.py)", page)
