"""HoVer: write the query that finds what a first search has missed.

A claim of HoVer (Jiang et al. 2020, arXiv 2011.03088) takes several pages of Wikipedia to check.
The claim itself was the first keyword query; the model sees the claim and the beginnings of the
pages found, and writes one follow-up query in a fenced block.  BM25 runs it, and the reward is the
share of the missing gold pages among those found.

Open in the paper; our choices: "hard" means claims of three hops or more; both searches return 7
pages (as in LangProBe's program for HoVer, arXiv 2502.20315); a claim whose pages the first search
finds all is left out; only the first 64 words of a query count, so that it cannot be a dictionary.

The folder of claims and pages is made by `python -m fst_jax.tasks hover`
(`fst_jax/tasks/hover_import.py`).
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from fst_jax.errors import TaskError
from fst_jax.tasks.advice import judged
from fst_jax.tasks.extract import after_thinking, last_fenced, shorten
from fst_jax.tasks.held_out import split_rows
from fst_jax.tasks.pages import Pages
from fst_jax.tasks.rows import Row, column
from fst_jax.tasks.task import Message, Problem, Score, Split

QUERY_WORDS = 64
ADVICE = {
    "correct": ("Keep searching for the pages that the first search only mentions.",),
    "no query": (
        "End with one search query in a block fenced by three backticks.",
        "Put the query alone on a line between two lines of three backticks.",
    ),
    "some pages found": (
        "Name every page that is still needed in the one query.",
        "Put the names of all linked people, places and works into the query.",
    ),
    "nothing new": (
        "Search for names that the found pages mention and that have no page among them yet.",
        "Leave out of the query what the first search already found.",
        "Follow the chain of the claim: look up the person, place or work that comes next.",
        "Use the likely title of the missing page as the query.",
    ),
}


class Hover:
    """Follow-up queries for claims; see the module's first paragraph."""

    name = "hover"
    seed_prompt = "Write the search query that is needed next, in a block fenced by ```."

    def __init__(
        self,
        folder: str,
        test_size: int = 200,
        seed: int = 0,
        pages: int = 7,
        shown_characters: int = 300,
    ):
        """`folder` holds pages, train.jsonl and, if it was imported, test.jsonl.

        Without the latter, `test_size` claims are held out of train, by `seed`.  Each search
        returns `pages` pages; the model sees `shown_characters` of each.
        """
        self._pages = Pages(Path(folder) / "pages")
        self._count, self._shown = pages, shown_characters
        if pages < 1 or shown_characters < 0:
            raise TaskError("task hover: pages must be at least 1, and shown_characters at least 0")
        test = Path(folder) / "test.jsonl"
        self._splits = split_rows(
            self.name,
            self._parse,
            str(Path(folder) / "train.jsonl"),
            str(test) if test.is_file() else None,
            test_size,
            seed,
        )
        self._search = lru_cache(maxsize=8192)(self._search_anew)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The claims of a split."""
        return self._splits[split]

    def render(self, problem: Problem) -> list[Message]:
        """The claim, and the beginning of each page that the first search found."""
        found = []
        for number in problem.data["found"]:
            title, text = self._pages.page(number)
            found.append(f"- {title}: {shorten(text, self._shown)}")
        listed = "\n".join(found) or "(nothing)"
        content = (
            f"Claim: {problem.question}\n\nA first search for the words of the claim found these "
            f"pages:\n{listed}\n\nThe claim cannot be checked with these alone. "
            "Write one query for a second search."
        )
        return [{"role": "user", "content": content}]

    def score(self, problem: Problem, text: str) -> Score:
        """The share of the missing pages that the query finds."""
        query = last_fenced(after_thinking(text))
        if not query:
            detail = "There is no query in a fenced block."
            return judged(problem, 0.0, "no query", ADVICE, detail)
        missing = problem.data["missing"]
        results = self._search(" ".join(query.split()[:QUERY_WORDS]))
        new = [number for number in missing if number in results]
        if len(new) == len(missing):
            category = "correct"
        else:
            category = "some pages found" if new else "nothing new"
        lines = [f"The query: {shorten(query, 120)}"]
        for told, numbers in (
            ("found", new),
            ("still missing", [number for number in missing if number not in new]),
            ("other results", [number for number in results if number not in new]),
        ):
            if numbers:
                titles = "; ".join(self._pages.page(number)[0] for number in numbers)
                lines.append(f"{told}: {shorten(titles, 300)}")
        return judged(problem, len(new) / len(missing), category, ADVICE, "\n".join(lines))

    def _search_anew(self, query: str) -> tuple[int, ...]:
        return tuple(self._pages.search(query, self._count))

    def _parse(self, id: str, row: Row, where: str) -> Problem | None:
        """None where the first search has found all."""
        gold, ranked = column(row, "gold", where), column(row, "ranked", where)
        titles, claim = column(row, "titles", where), column(row, "claim", where)
        lists = all(isinstance(each, list) for each in (gold, ranked, titles))
        if not lists or len(gold) != len(titles) or not isinstance(claim, str):
            raise TaskError(f"{where}: not a claim: make the folder again")
        if not all(type(n) is int and 0 <= n < len(self._pages) for n in [*gold, *ranked]):
            raise TaskError(f"{where}: the pages of this claim are not those of the folder")
        found = ranked[: self._count]
        missing = {n: title for n, title in zip(gold, titles, strict=True) if n not in found}
        if not missing:
            return None
        data = {"found": found, "missing": list(missing)}
        return Problem(id, claim, "; ".join(map(str, missing.values())), data)
