"""Pages that can be searched by keywords: titles, abstracts and a BM25 index, in one folder.

Built once from a dump of page abstracts, one JSON object a line with `title` and `text` (text, or a
list of sentences), in files that may be packed by gzip or bzip2: the form in which the abstracts of
Wikipedia behind HotpotQA and HoVer are handed out.  Opened again without reading it all: texts stay
on disk, and the index is mapped into memory.

BM25 is that of `bm25s` (Lù 2024, arXiv 2407.03618) in its default variant, with English stop words
left out and no stemming.
"""

import bz2
import gzip
import json
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fst_jax.errors import TaskError

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}


class Pages:
    """An opened folder of pages; a page is known by its number."""

    def __init__(self, folder: str | Path):
        """Open what `build` made.

        Raises:
          TaskError: it is not such a folder, or bm25s is missing.
        """
        library = _bm25s()
        self._folder = Path(folder)
        try:
            self._offsets = np.load(self._folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
            index = str(self._folder / "index")
            self._index = library.BM25.load(index, mmap=True, allow_pickle=False)
            if self._offsets.ndim != 1 or self._offsets.dtype != np.uint64:
                raise ValueError("offsets.npy is not a list of places")
        except Exception as error:  # damaged files surface as many types
            raise TaskError(
                f"{folder} holds no pages: make it with `python -m fst_jax.tasks hover` "
                f"({type(error).__name__}: {error})"
            ) from error
        self._library = library

    def __len__(self) -> int:
        return len(self._offsets)

    def page(self, number: int) -> tuple[str, str]:
        """(title, text).

        Raises:
          TaskError: the page is damaged.
        """
        try:
            with (self._folder / "pages.jsonl").open("rb") as file:
                file.seek(int(self._offsets[number]))
                title, text = json.loads(file.readline())
            return str(title), str(text)
        except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise TaskError(
                f"page {number} of {self._folder} is damaged ({error}): make the folder again"
            ) from error

    def titles(self) -> dict[str, int]:
        """Title → number; reads every page."""
        found: dict[str, int] = {}
        with (self._folder / "pages.jsonl").open("rb") as file:
            for number, line in enumerate(file):
                found.setdefault(json.loads(line)[0], number)
        return found

    def search(self, query: str, count: int) -> list[int]:
        """The `count` best pages for a query's words, best first; fewer if fewer share a word."""
        words = self._words(query)
        if not words:
            return []
        scores = self._index.get_scores(words)
        # The library's own choice of the best goes through JAX's device; ties go to the first page.
        found = np.flatnonzero(scores > 0)
        if len(found) > count:
            least = np.partition(scores[found], -count)[-count]
            found = found[scores[found] >= least]
        return found[np.argsort(-scores[found], kind="stable")][:count].tolist()

    def _words(self, text: str) -> list[str]:
        """The words of a text that the index knows."""
        (words,) = _words(self._library, [text])
        return [word for word in words if word in self._index.vocab_dict]


def build(dump: str | Path, folder: str | Path) -> Pages:
    """Copy the pages of a dump, a file or a folder of them, into `folder` and index them.

    Raises:
      TaskError: the dump cannot be read, has no page, or a line is no page.
    """
    library, folder = _bm25s(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    offsets, texts = array("Q"), []
    with (folder / "pages.jsonl").open("wb") as out:
        for title, text in _read(Path(dump)):
            offsets.append(out.tell())
            out.write(json.dumps([title, text], ensure_ascii=False).encode() + b"\n")
            texts.append(f"{title} {text}")
    if not texts:
        raise TaskError(f"{dump}: no page in it")
    np.save(folder / "offsets.npy", np.frombuffer(offsets, np.uint64))
    index = library.BM25()
    index.index(_words(library, texts, ids=True), show_progress=False)
    index.save(str(folder / "index"))
    return Pages(folder)


def normalised(title: str) -> str:
    """A title as all titles are compared: composed characters, single spaces."""
    return " ".join(unicodedata.normalize("NFC", title).split())


def _words(library: Any, texts: Sequence[str], ids: bool = False) -> Any:
    return library.tokenize(texts, stopwords="en", return_ids=ids, show_progress=False)


def _read(dump: Path) -> Iterator[tuple[str, str]]:
    """(title, text) of each page."""
    files = sorted(f for f in dump.rglob("*") if f.is_file()) if dump.is_dir() else [dump]
    for path in files:
        opener = _OPENERS.get(path.suffix, open)
        try:
            with opener(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _page(line, f"{path}:{number}")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise TaskError(f"cannot read {path}: {error}") from error


def _page(line: str, where: str) -> tuple[str, str]:
    try:
        page = json.loads(line)
        title, text = page["title"], page["text"]
        text = text if isinstance(text, str) else "".join(text)
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f'{where}: a page is one JSON object a line, {{"title": "…", "text": "…"}} ({error!r})'
        ) from error
    return normalised(title), " ".join(text.split())


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise TaskError(
            f"task hover needs bm25s: pip install 'fst_jax[tasks]' ({error})"
        ) from error
    return bm25s
