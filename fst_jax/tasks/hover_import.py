"""From HoVer's JSON and a dump of page abstracts to the folder that the task `hover` reads.

HoVer's files are arrays of {claim, supporting_facts: [[title, sentence], …], num_hops, …}, as its
authors release them; the copy on the Hugging Face hub, with {key, value} for a fact, is read too.
The first search, with the claim as its query, is done here, once for all runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from fst_jax.errors import TaskError
from fst_jax.tasks.pages import Pages, build, normalised
from fst_jax.tasks.rows import Row, column, open_rows

RANKED = 20  # pages of the first search that are kept; a task shows the first few


@dataclass
class Imported:
    """What an import did with the claims of a file."""

    claims: int = 0
    written: int = 0
    fewer_hops: int = 0  # left out: too few hops
    unknown_pages: int = 0  # left out: a gold page is not in the dump


def import_hover(
    claims: dict[str, str], dump: str, folder: str, min_hops: int = 3
) -> dict[str, Imported]:
    """Write pages/ and a <split>.jsonl for each split and source of `claims`.

    Returns what became of the claims of each split.

    Raises:
      TaskError: a file cannot be read or is of another form, or no claim is left.
    """
    pages = build(dump, Path(folder) / "pages")
    titles = pages.titles()
    reports = {}
    for split, source in claims.items():
        rows, report = open_rows(source), Imported()
        with (Path(folder) / f"{split}.jsonl").open("w", encoding="utf-8") as out:
            for i in range(rows.size):
                line = _claim(rows.read(i), rows.where(i), pages, titles, min_hops, report)
                if line is not None:
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not report.written:
            raise TaskError(
                f"{source}: of {report.claims} claims {report.fewer_hops} have fewer than "
                f"{min_hops} hops and {report.unknown_pages} need pages that {dump} lacks: no "
                "claim is left"
            )
        reports[split] = report
    return reports


def _claim(
    row: Row, where: str, pages: Pages, titles: dict[str, int], min_hops: int, report: Imported
) -> Row | None:
    """What the task reads of a claim, or None."""
    claim, facts = column(row, "claim", where), column(row, "supporting_facts", where)
    report.claims += 1
    if column(row, "num_hops", where) < min_hops:
        report.fewer_hops += 1
        return None
    try:
        named = [fact["key"] if isinstance(fact, dict) else fact[0] for fact in facts]
        needed = list(dict.fromkeys(normalised(title) for title in named))
    except (KeyError, IndexError, TypeError) as error:
        raise TaskError(f"{where}: supporting_facts must be [title, sentence] pairs") from error
    if not needed or not all(title in titles for title in needed):
        report.unknown_pages += 1
        return None
    report.written += 1
    return {
        "uid": row.get("uid"),
        "claim": claim,
        "titles": needed,
        "gold": [titles[title] for title in needed],
        "ranked": pages.search(claim, RANKED),
    }
