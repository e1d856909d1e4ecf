import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.catalog import library, papers, store
from assay.catalog import search as module
from assay.catalog.daily_papers import Entry
from assay.catalog.library import LibraryPaper
from assay.catalog.records import Paper
from assay.catalog.search import search
from assay.errors import AssayError, UserError


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))


def paper(slug, title="filler", summary="filler", abstract="filler", votes=0, area="norm", date=None, **record):
    fields = {"slug": slug, "area": area, "title": title, "kind": "technique", "summary": summary, "treats": []}
    known = Paper.parse({**fields, **record})
    return LibraryPaper(slug, title, area, "catalogued", None, date, votes, summary, abstract, known)


@pytest.fixture
def shelf(monkeypatch):
    """Put papers of one's own in the library's place."""

    def put(*papers):
        monkeypatch.setattr(library, "papers", lambda area=None, since=None: list(papers))

    return put


def slugs(query, **options):
    return [hit.paper.slug for hit in search(query, **options)]


FILLER = [paper(f"filler-{i}") for i in range(5)]


def test_the_title_outweighs_the_summary_and_that_the_abstract(shelf):
    shelf(*FILLER, paper("c", abstract="zebra"), paper("b", summary="zebra"), paper("a", title="zebra"))
    assert slugs("zebra") == ["a", "b", "c"]
    scores = [hit.score for hit in search("zebra")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1] > scores[2] > 0


def test_scores_are_bm25_of_the_weighted_counts(shelf):
    """Okapi BM25 with k1 = 1.2 and b = 0.75, computed by hand on documents of equal length."""
    import math

    shelf(*FILLER, paper("a", title="zebra"), paper("b", abstract="zebra"))
    idf = math.log((7 - 2 + 0.5) / (2 + 0.5))
    hits = {hit.paper.slug: hit.score for hit in search("zebra")}
    lengths = [2 * 1 + 1 + len(p.split("-")) for p in [f.slug for f in FILLER] + ["a", "b"]]
    average = sum(lengths) / 7
    for slug, count in (("a", 8), ("b", 1)):
        length_term = 1.2 * (1 - 0.75 + 0.75 * 4 / average)
        assert hits[slug] == pytest.approx(idf * count * 2.2 / (count + length_term))


def test_more_of_the_words_is_better_and_one_is_enough(shelf):
    shelf(*FILLER, paper("one", title="red blue"), paper("two", title="red zebra"), paper("other", title="green"))
    assert slugs("red zebra") == ["two", "one"]


def test_the_last_word_may_be_a_beginning_and_the_others_not(shelf):
    shelf(*FILLER, paper("a", title="normalization"), paper("b", title="zebra"))
    assert set(slugs("zebra normal")) == set(slugs("zebra normaliz")) == {"a", "b"}
    assert slugs("normal zebra") == ["b"]


def test_a_plural_finds_its_singular_in_any_place(shelf):
    shelf(*FILLER, paper("a", title="attention sink"), paper("b", title="some loss"))
    assert slugs("sinks") == slugs("sinks zzz") == ["a"]
    assert slugs("los") == ["b"]
    assert slugs("loss zzz") == ["b"]


@pytest.mark.parametrize("query", ["POINCARÉ", "poincare", "Poincaré", "  poincaré\t"])
def test_case_and_accents_do_not_matter(shelf, query):
    shelf(*FILLER, paper("a", title="Poincaré ResNet"))
    assert slugs(query) == ["a"]


def test_slug_arxiv_number_and_symptoms_are_found(shelf):
    shelf(*FILLER, paper("my-paper", arxiv="2510.22777", treats=["loss-spike"]))
    assert slugs("my-paper") == slugs("2510.22777") == slugs("loss-spike") == ["my-paper"]


def test_equal_scores_are_ordered_by_votes_then_slug(shelf):
    shelf(*FILLER, *(paper(slug, title="zebra", votes=votes) for slug, votes in [("c", 1), ("b", 1), ("a", 0)]))
    assert slugs("zebra") == ["b", "c", "a"]
    assert slugs("zebra", limit=2) == ["b", "c"]


@pytest.mark.parametrize(
    "query",
    [
        *("zebra AND", "NOT zebra", 'zebra "', "zebra*", "*zebra", "-zebra", "title:zebra", "NEAR(zebra y, 2)"),
        *("^zebra", "{zebra", "zebra +", "(zebra", "zebra OR", "'zebra'", "zebra\0y", "zebra\ud800", '"zebra y"'),
    ],
)
def test_operators_are_only_words(shelf, query):
    shelf(*[paper(f"p{letter}") for letter in "klmno"], paper("a", title="zebra"))
    assert slugs(query) == ["a"]


def test_a_compound_is_one_word(shelf):
    shelf(*FILLER, paper("a", title="Pre-LN wins"), paper("b", title="LN, pre"), paper("c", title="pre ln 2"))
    assert set(slugs("pre-ln")) == {"a", "c"}
    assert set(slugs("pre ln")) == {"a", "b", "c"}


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(["", " seednorm", '" OR ']))
def test_no_query_is_a_syntax_error(text, tail):
    query = text + tail
    try:
        expression = module._expression(query)
    except UserError:
        assert not any(map(str.isalnum, query))
    else:
        module._rank([paper("a", title="zebra")], expression)


@pytest.mark.parametrize("query", ["", "  ", '"*-', "()", "—"])
def test_a_query_without_words_is_refused(query):
    with pytest.raises(UserError, match="has no word to search for"):
        search(query)


def test_the_catalogue_is_searched_without_an_import():
    assert slugs("seednorm", limit=1) == ["seednorm"]
    assert slugs("self-rescaled dynamic normalization")[0] == "seednorm"
    assert slugs("zzzqqq") == []
    assert not store.path().exists()


def test_every_paper_is_found_by_its_own_title():
    for known in papers():
        assert known.slug in slugs(known.title, limit=3)


def test_area_since_and_limit_narrow_the_hits():
    everything = {hit.paper.slug for hit in search("normalization", limit=1000)}
    norm = search("normalization", area="norm", limit=1000)
    assert {hit.paper.slug for hit in norm} == everything & {p.slug for p in papers("norm")}
    assert {hit.paper.slug for hit in search("normalization", since="2025", limit=1000)} == everything & {
        p.slug for p in papers(since="2025")
    }
    assert search("normalization", area="norm", limit=2) == norm[:2]
    with pytest.raises(UserError, match="nearest: norm"):
        search("x", area="nrom")
    with pytest.raises(UserError, match="not a date"):
        search("x", since="x")
    with pytest.raises(UserError, match="limit 0"):
        search("x", limit=0)


def test_imported_papers_and_abstracts_are_found():
    store.add([Entry("Wholly New", "About zyzzyva beetles."), Entry(papers()[0].title, "A zyzzyva, once more.")])
    assert set(slugs("zyzzyva")) == {"wholly-new", papers()[0].slug}
    assert slugs("zyzzyva", area=papers()[0].area) == [papers()[0].slug]


def test_an_sqlite_without_text_search_is_named(monkeypatch, shelf):
    class Bare:
        def execute(self, _statement):
            raise sqlite3.OperationalError("no such module: fts5")

        def close(self):
            pass

    shelf(*FILLER)
    monkeypatch.setattr(module.sqlite3, "connect", lambda _name: Bare())
    with pytest.raises(AssayError, match="cannot search text: no such module: fts5"):
        search("x")
