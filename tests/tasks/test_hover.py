"""Follow-up queries: the sample encyclopedia, the importer, BM25 and the reward."""

import bz2
import gzip
import json

import pytest

pytest.importorskip("bm25s", reason="pip install 'fst_jax[tasks]' to test hover")

from fst_jax.config import TaskSettings
from fst_jax.errors import TaskError
from fst_jax.tasks.hover import ADVICE, Hover
from fst_jax.tasks.hover_import import import_hover
from fst_jax.tasks.hover_sample import PAGES, write_sample
from fst_jax.tasks.pages import Pages, build
from fst_jax.tasks.registry import load_task
from tests.task_samples import write_hover, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hover(tmp_path_factory.mktemp("hover"))


@pytest.fixture(scope="module")
def task(folder):
    return load_task(TaskSettings(name="hover", options={"folder": folder}))


def fenced(query):
    return f"<think>hm</think>The next search:\n```\n{query}\n```"


def test_the_sample_is_deterministic_and_whole(tmp_path):
    for name in ("one", "two"):
        write_sample(tmp_path / name, claims=40, test=10)
    for file in ("pages.jsonl", "train.json", "test.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    lines = (tmp_path / "one/pages.jsonl").read_text().splitlines()
    titles = {json.loads(line)["title"] for line in lines}
    assert len(titles) == len(lines) == sum(PAGES.values()) == 2000
    train, test = (json.loads((tmp_path / f"one/{s}.json").read_text()) for s in ("train", "test"))
    assert (len(train), len(test)) == (40, 10)
    assert not {claim["claim"] for claim in train} & {claim["claim"] for claim in test}
    for claim in train:
        gold = {title for title, _ in claim["supporting_facts"]}
        assert gold <= titles and 2 <= len(gold) <= claim["num_hops"] <= 4
    assert {claim["num_hops"] for claim in train} == {2, 3, 4}
    assert {claim["label"] for claim in train} == {"SUPPORTED", "NOT_SUPPORTED"}


def test_a_claim_shows_what_the_first_search_found(task):
    for problem in task.problems("train")[:20]:
        (message,) = task.render(problem)
        assert message["content"].startswith(f"Claim: {problem.question}\n")
        shown = [line for line in message["content"].split("\n") if line.startswith("- ")]
        assert 1 <= len(shown) <= 7
        for title in problem.answer.split("; "):
            assert not any(line.startswith(f"- {title}: ") for line in shown)


def test_the_reward_is_the_share_of_missing_pages_found(task, folder):
    pages = Pages(f"{folder}/pages")
    titles, rewards = pages.titles(), set()
    for problem in task.problems("train"):
        missing = problem.answer.split("; ")
        for query in (missing[0], " ".join(missing), problem.question):
            found = pages.search(query, 7)
            expected = sum(titles[title] in found for title in missing) / len(missing)
            score = task.score(problem, fenced(query))
            assert score.reward == expected
            wanted = {0.0: "nothing new", 1.0: "correct"}.get(expected, "some pages found")
            assert score.category == wanted
            rewards.add(expected)
    assert rewards >= {0.0, 0.5, 1.0}


def test_a_name_from_the_first_results_leads_on(task):
    """The sample is solvable by what a model sees: the next page is named in the first ones."""
    gained = []
    for problem in task.problems("test"):
        shown = task.render(problem)[0]["content"]
        named = [title for title in problem.answer.split("; ") if title in shown]
        gained.append(task.score(problem, fenced(" ".join(named) or "nothing")).reward)
    repeated = [task.score(p, fenced(p.question)).reward for p in task.problems("test")]
    assert sum(gained) / len(gained) > 0.4 and sum(repeated) == 0.0


@pytest.mark.parametrize("text", ["", "Search for Ulmorvik.", "<think>```\nx\n```", "```\n\n```"])
def test_no_query(task, text):
    score = task.score(task.problems("train")[0], text)
    assert (score.reward, score.category) == (0.0, "no query")
    assert score.feedback.split("\n")[0] in ADVICE["no query"]


def test_feedback_names_pages(task):
    problem = task.problems("train")[0]
    nothing = task.score(problem, fenced("zzz")).feedback
    assert f"still missing: {problem.answer}" in nothing and "other results" not in nothing
    first = problem.answer.split("; ")[0]
    assert f"found: {first}" in task.score(problem, fenced(first)).feedback


def test_only_the_first_words_of_a_query_count(task):
    problem = task.problems("train")[0]
    first = problem.answer.split("; ")[0]
    assert task.score(problem, fenced("zzz " * 63 + first)).reward == 0.0  # a name of two words
    assert task.score(problem, fenced("zzz " * 60 + first)).reward > 0.0


def test_search_agrees_with_bm25_by_hand(tmp_path):
    """Robertson's idf in Lucene's form, k1 = 1.5, b = 0.75: the library's defaults."""
    import math

    texts = ["red red boat", "red house", "green house garden", "boat trip lake shore"]
    rows = [{"title": f"t{i}", "text": text} for i, text in enumerate(texts)]
    pages = build(write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "pages")
    words = [["t" + str(i), *text.split()] for i, text in enumerate(texts)]
    mean = sum(map(len, words)) / len(words)

    def bm25(query, page):
        total = 0.0
        for word in query.split():
            holding = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
            count = page.count(word)
            total += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(page) / mean))
        return total

    for query in ("red boat", "house", "garden house red", "lake", "red"):
        scores = {i: bm25(query, page) for i, page in enumerate(words)}
        best = sorted((i for i in scores if scores[i] > 0), key=lambda i: -scores[i])
        assert pages.search(query, 3) == best[:3]
    assert pages.search("the of zzz", 3) == [] == pages.search("", 3)


def test_dumps_may_be_packed_and_in_folders(tmp_path):
    pages = [{"title": f"Page {n}", "text": [f"Word{n}.", " More."]} for n in range(4)]
    lines = [json.dumps(page) + "\n" for page in pages]
    (tmp_path / "dump/AA").mkdir(parents=True)
    (tmp_path / "dump/AA/wiki_00.bz2").write_bytes(bz2.compress("".join(lines[:2]).encode()))
    (tmp_path / "dump/AA/wiki_01.gz").write_bytes(gzip.compress(lines[2].encode()))
    (tmp_path / "dump/AA/wiki_02").write_text(lines[3])
    found = build(tmp_path / "dump", tmp_path / "pages")
    assert [found.page(n) for n in range(4)] == [(f"Page {n}", f"Word{n}. More.") for n in range(4)]
    assert found.search("word2", 2) == [2]


def test_the_importer_says_what_it_left_out(tmp_path):
    dump = write_jsonl(
        tmp_path / "p.jsonl",
        [{"title": title, "text": "An e\u0301tude."} for title in ("A", "B", "Cafe\u0301")],
    )
    facts = {"three": ["A", "B", "Café"], "two": ["A", "B"], "unknown": ["A", "B", "Z"]}
    claims = [
        {"claim": name, "supporting_facts": [[t, 0] for t in needed], "num_hops": len(needed)}
        for name, needed in facts.items()
    ]
    claims[0]["supporting_facts"] = [{"key": t, "value": 0} for t in facts["three"]]
    path = tmp_path / "hover.json"
    path.write_text(json.dumps(claims))
    report = import_hover({"train": str(path)}, dump, str(tmp_path / "out"))["train"]
    assert (report.claims, report.written, report.fewer_hops, report.unknown_pages) == (3, 1, 1, 1)
    (line,) = (tmp_path / "out/train.jsonl").read_text().splitlines()
    assert json.loads(line)["titles"] == ["A", "B", "Café"]
    with pytest.raises(TaskError, match="of 3 claims 3 have fewer than 5 hops .* no claim is left"):
        import_hover({"train": str(path)}, dump, str(tmp_path / "none"), min_hops=5)


def test_mistakes_are_named(tmp_path, folder):
    with pytest.raises(TaskError, match="holds no pages: make it with"):
        Hover(str(tmp_path))
    with pytest.raises(TaskError, match=r"p.jsonl:1: a page is one JSON object a line"):
        build(write_jsonl(tmp_path / "p.jsonl", [{"name": "A"}]), tmp_path / "pages")
    with pytest.raises(TaskError, match="no page in it"):
        build(write_jsonl(tmp_path / "e.jsonl", []), tmp_path / "pages")
    with pytest.raises(TaskError, match="pages must be at least 1"):
        Hover(folder, pages=0)
