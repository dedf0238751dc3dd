"""What MkDocs cannot do by itself for our site; named in mkdocs.yml under `hooks`.

The pages of docs/ are read in two places: in the repository, and on the site.  So they link to
files of the repository as such links are written, ../SECURITY.md or ../fst_jax/train.py.  On the
site the first is a page, since the files of `PAGES` become pages, and the second its path, since
there is nothing to link to.  The settings are taken from `fst_jax/config.py` when the site is
built: a line `<!-- settings: SECTION -->` stands for those of a section, "top level" for those of
none.
"""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from fst_jax import schema

ROOT = Path(__file__).parent
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
TOP_LEVEL = "top level"

_LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_SETTINGS = re.compile(r"^<!-- settings: (.+) -->$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside of docs/."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links and settings what they are on the site."""
    place = page.file.src_uri
    if place == "configuration.md":
        markdown = with_settings(markdown)
    return _LINK.sub(lambda link: _on_the_site(link, place), markdown)


def _on_the_site(link: re.Match[str], place: str) -> str:
    """A link to a file of the repository: to its page, or its path as code."""
    text, path, anchor = link.groups()
    if path in PAGES:
        return f"[{text}]({path}{anchor or ''})"
    if not (ROOT / path).exists():
        raise PluginError(f"{place} links to ../{path}, which is not in the repository")
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"


def with_settings(markdown: str) -> str:
    """The page with all settings in it, each section once.

    Raises:
      PluginError: it names a section twice, one that does not exist, or not all of them.
    """
    named = sorted(_SETTINGS.findall(markdown))
    known = sorted([TOP_LEVEL, *schema.sections()])
    if named != known:
        raise PluginError(f"configuration.md has the settings of {named}, and there are {known}")
    return _SETTINGS.sub(lambda line: "\n".join(_section(line[1])), markdown)


def _section(name: str) -> Iterator[str]:
    """Its settings as a definition list; each has its key as anchor, which is a link to itself."""
    prefix = "" if name == TOP_LEVEL else f"{name}."
    for key, setting in schema.settings().items():
        if key.rpartition(".")[0] != prefix.rstrip("."):
            continue
        default = html.escape(json.dumps(setting.default, ensure_ascii=False))
        yield (
            f'<a id="{key}" href="#{key}"><code>{key}</code></a> {html.escape(setting.expected)}; '
            f"default <code>{default}</code>"
        )
        yield f":   {_as_text(setting.help)}"
        yield ""


def _as_text(help: str) -> str:
    """A help text in Markdown: its signs are text, but for `code`, and its pages are links."""
    parts = help.split("`")
    for i in range(0, len(parts), 2):
        part = re.sub(r"([\\*_<>\[\]])", r"\\\1", parts[i])
        part = re.sub(r"docs/(\w+\\?_?\w*)\.md", lambda m: _page_link(m[1]), part)
        parts[i] = part
    return "`".join(parts)


def _page_link(escaped: str) -> str:
    name = escaped.replace("\\", "")
    return f"[{name}]({name}.md)"
