"""A small encyclopedia of an invented country, with claims about it in HoVer's own format.

Two thousand pages, made of syllables and a seed: rivers, towns, schools, people, books, films,
companies and bridges that refer to each other.  Claims follow such references over two to four
pages and name only the first and the last, so that a keyword search for the claim misses those in
between, as with the real data.  It serves to try and test the task `hover` where no dump of
Wikipedia is at hand.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")

PAGES = {
    "river": 80,
    "town": 240,
    "school": 160,
    "person": 620,
    "book": 360,
    "film": 240,
    "company": 200,
    "bridge": 100,
}
_STARTS = "Bal Cor Dem Eld Fen Gar Hol Ist Jar Kel Lor Mar Nor Ost Pel Quin Ros Sel Tor Ulm".split()
_MIDDLES = "a e i o u an en in on ar er or al el il as es is os".split()
_ENDS = "bek dan fell gard hult kir lund mont nar path quist rod stad tun vik wald".split()
_THINGS = "Lantern Orchard Winter Mirror Harbour Kite Cellar Garden Letter Clock Ferry".split()
_TRADES = "painter surveyor chemist poet engineer violinist botanist judge weaver pilot".split()
_GOODS = "clocks bicycles glass rope lamps ink saddles organs maps kettles".split()
_CRAFTS = "copper mines,salt works,apple fairs,paper mills,stone carvers,shipyards".split(",")


@dataclass
class Page:
    """A page and the pages that it refers to, by what they are to it."""

    title: str
    kind: str
    text: str = ""
    links: dict[str, "Page"] = field(default_factory=dict)


def write_sample(folder: str | Path, claims: int = 1200, test: int = 200, seed: int = 0) -> None:
    """Write pages.jsonl, and train.json and test.json in HoVer's format, as `seed` has it.

    `claims` is the number of train claims, `test` that of test claims; no claim is in both.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pages = _pages(rng)
    lines = (json.dumps({"title": page.title, "text": page.text}) for page in pages)
    (folder / "pages.jsonl").write_text("".join(f"{line}\n" for line in lines))
    made: dict[str, dict[str, object]] = {}
    while len(made) < claims + test:
        claim = _claim(pages, rng)
        made.setdefault(str(claim["claim"]), claim)
    entries = [{"uid": f"sample-{i}", **claim} for i, claim in enumerate(made.values())]
    (folder / "test.json").write_text(json.dumps(entries[:test], indent=1))
    (folder / "train.json").write_text(json.dumps(entries[test:], indent=1))


def _pages(rng: np.random.Generator) -> list[Page]:
    of: dict[str, list[Page]] = {}
    taken: set[str] = set()
    for kind, count in PAGES.items():
        of[kind] = [Page(_title(kind, taken, rng), kind) for _ in range(count)]
        for page in of[kind]:
            _WRITE[kind](page, of, rng)
    return [page for kind in PAGES for page in of[kind]]


def _title(kind: str, taken: set[str], rng: np.random.Generator) -> str:
    """A name that no page has yet."""
    while True:
        word = "".join(_pick(part, rng) for part in (_STARTS, _MIDDLES, _ENDS))
        other = "".join(_pick(part, rng) for part in (_STARTS, _MIDDLES, _ENDS))
        title = {
            "person": f"{word[:-4] or word}a {other}",
            "book": f"The {_pick(_THINGS, rng)} of {word}",
            "film": f"{_pick(_THINGS, rng)} at {word}",
            "company": f"{word} and {other}",
            "bridge": f"{word} Bridge",
            "school": f"{word} College",
        }.get(kind, word)
        if title not in taken:
            taken.add(title)
            return title


def _river(page: Page, of: dict[str, list[Page]], rng: np.random.Generator) -> None:
    page.text = (
        f"{page.title} is a river of {rng.integers(30, 900)} kilometres. It rises in the "
        f"{_pick(('northern', 'southern', 'eastern', 'western'), rng)} hills and is navigable for "
        f"{rng.integers(2, 11)} months of the year."
    )


def _town(page: Page, of: dict[str, list[Page]], rng: np.random.Generator) -> None:
    page.links["river"] = river = _pick(of["river"], rng)
    page.text = (
        f"{page.title} is a town on the river {river.title}, known for its {_pick(_CRAFTS, rng)}. "
        f"It has {rng.integers(2, 90) * 1000} inhabitants and received its charter in {_year(rng)}."
    )


def _school(page: Page, of: dict[str, list[Page]], rng: np.random.Generator) -> None:
    page.links["town"] = town = _pick(of["town"], rng)
    page.text = (
        f"{page.title} is a school in {town.title}, opened in {_year(rng)}. It teaches "
        f"{rng.integers(100, 3000)} pupils."
    )


def _person(page: Page, of: dict[str, list[Page]], rng: np.random.Generator) -> None:
    page.links["town"], page.links["school"] = _pick(of["town"], rng), _pick(of["school"], rng)
    page.text = (
        f"{page.title} was a {_pick(_TRADES, rng)}, born in {page.links['town'].title} in "
        f"{_year(rng)} and taught at {page.links['school'].title}."
    )


def _book(page: Page, of: dict[str, list[Page]], rng: np.random.Generator) -> None:
    page.links["author"] = author = _pick(of["person"], rng)
    page.text = (
        f"{page.title} is a novel by {author.title}, printed in {_year(rng)}. Its hero, by "
        f"trade {_pick(_TRADES, rng)}, comes home after {rng.integers(3, 40)} years."
    )


def _film(page: Page, of: dict[str, list[Page]], rng: np.random.Generator) -> None:
    page.links["book"], page.links["director"] = _pick(of["book"], rng), _pick(of["person"], rng)
    page.text = (
        f"{page.title} is a film that follows the novel {page.links['book'].title}. It was "
        f"directed by {page.links['director'].title} and runs for {rng.integers(70, 190)} minutes."
    )


def _company(page: Page, of: dict[str, list[Page]], rng: np.random.Generator) -> None:
    page.links["founder"] = founder = _pick(of["person"], rng)
    page.text = (
        f"{page.title} makes {_pick(_GOODS, rng)}. It was founded by {founder.title} and employs "
        f"{rng.integers(10, 5000)} workers."
    )


def _bridge(page: Page, of: dict[str, list[Page]], rng: np.random.Generator) -> None:
    page.links["river"], page.links["engineer"] = _pick(of["river"], rng), _pick(of["person"], rng)
    page.text = (
        f"{page.title} crosses the river {page.links['river'].title}. It was built by "
        f"{page.links['engineer'].title} and has {rng.integers(1, 20)} arches."
    )


_WRITE: dict[str, Callable[[Page, dict[str, list[Page]], np.random.Generator], None]] = {
    "river": _river,
    "town": _town,
    "school": _school,
    "person": _person,
    "book": _book,
    "film": _film,
    "company": _company,
    "bridge": _bridge,
}

# (kind of the first page, references to follow, claim); the last page is named, those between not.
_CLAIMS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("book", ("author",), "The novel {first} was written by {last}."),
    ("book", ("author", "town"), "The writer of {first} was born in {last}."),
    ("company", ("founder", "school"), "The founder of {first} was taught at {last}."),
    (
        "bridge",
        ("engineer", "town"),
        "The engineer who built the {first} came into the world in {last}.",
    ),
    (
        "book",
        ("author", "town", "river"),
        "The writer of {first} was born in a town on the river {last}.",
    ),
    (
        "company",
        ("founder", "school", "town"),
        "The school at which the founder of {first} was taught stands in {last}.",
    ),
    (
        "film",
        ("book", "author", "town"),
        "The author of the novel that the film {first} follows was born in {last}.",
    ),
    (
        "film",
        ("director", "school", "town"),
        "Whoever directed {first} went to a school in {last}.",
    ),
)


def _claim(pages: Sequence[Page], rng: np.random.Generator) -> dict[str, object]:
    """An entry of HoVer's files; half of the claims are false, by the name of another last page."""
    kind, references, sentence = _CLAIMS[int(rng.integers(len(_CLAIMS)))]
    chain = [_pick([page for page in pages if page.kind == kind], rng)]
    for reference in references:
        chain.append(chain[-1].links[reference])
    named, supported = chain[-1], bool(rng.integers(2))
    while not supported and named is chain[-1]:
        named = _pick([page for page in pages if page.kind == chain[-1].kind], rng)
    return {
        "claim": sentence.format(first=chain[0].title, last=named.title),
        "supporting_facts": [[page.title, 0] for page in chain],
        "label": "SUPPORTED" if supported else "NOT_SUPPORTED",
        "num_hops": len(chain),
    }


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _year(rng: np.random.Generator) -> int:
    return int(rng.integers(1650, 1990))
