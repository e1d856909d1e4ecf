"""The store and its join with the catalogue, on real SQLite files."""

import errno
import os
import pathlib
import random
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.catalog import library, papers, records, store
from assay.catalog.daily_papers import Entry
from assay.catalog.records import Catalog, Paper
from assay.catalog.store import ImportReport
from assay.errors import AssayError, UserError
from assay.home import cache, home

SEEDNORM = "SeeDNorm: Self-Rescaled Dynamic Normalization"


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))


def write_page(file, *entries, today="Jun 9"):
    """A page of (title, date and votes) pairs."""
    blocks = [f"{title}\n\nAbstract of {title}.\n\n  • 2 authors\n·\n{date}" for title, date in entries]
    file.write_text(f"Daily Papers\n\nbyAK and friends\n\n{today}\n\n" + "\n\n".join(blocks), encoding="utf-8")
    return file


def test_home_and_cache_follow_the_environment(monkeypatch, tmp_path):
    assert home() == tmp_path / "home"
    assert cache() == tmp_path / "home" / "cache"
    monkeypatch.setenv("ASSAY_HOME", "~/elsewhere")
    assert home() == pathlib.Path.home() / "elsewhere"
    for unset in (lambda: monkeypatch.setenv("ASSAY_HOME", ""), lambda: monkeypatch.delenv("ASSAY_HOME")):
        unset()
        assert home().name == cache().name == "assay"
        assert home() != cache()


def test_without_an_import_the_library_is_the_catalogue():
    assert [(p.slug, p.title, p.area, p.date, p.votes, p.status) for p in library.papers()] == [
        (p.slug, p.title, p.area, p.date, p.votes, p.status) for p in papers()
    ]
    assert not store.path().exists()


def test_an_import_counts_entries_and_papers(tmp_path):
    first = write_page(tmp_path / "1", ("Alpha", "Jun 1"), ("Beta", "Jun 2"), ("ALPHA!", "Jun 1"))
    second = write_page(tmp_path / "2", ("Beta", "Jun 2"), ("Gamma", "Jun 3"))
    assert library.import_pages([first, second]) == ImportReport(5, 3, 3, 0, 0)
    assert library.import_pages([second, first]) == ImportReport(5, 3, 0, 0, 3)
    third = write_page(tmp_path / "3", ("Beta", "Jun 2 7"), ("Gamma", "Jun 3"), ("Delta", "Jun 3"))
    assert library.import_pages([third]) == ImportReport(3, 3, 1, 1, 1)


def test_importing_twice_leaves_every_byte(tmp_path):
    page = write_page(tmp_path / "1", ("Alpha", "Jun 1 3"), (SEEDNORM, "Oct 26"))
    library.import_pages([page])
    before = store.path().read_bytes()
    library.import_pages([page, page])
    assert store.path().read_bytes() == before


def test_a_paper_of_the_catalogue_is_joined_by_its_title(tmp_path):
    known = library.paper("seednorm")
    written = "seednorm – self rescaled DYNAMIC normalization"
    library.import_pages([write_page(tmp_path / "1", (written, "Oct 26 41"))])
    joined = library.paper("seednorm")
    assert len(library.papers()) == len(papers())
    assert (joined.title, joined.authors, joined.date) == (known.title, known.authors, known.date)
    assert (joined.votes, joined.abstract, joined.status) == (41, f"Abstract of {written}.", "available")
    assert (known.votes, known.abstract) == (0, "")


def test_a_catalogued_paper_of_open_year_learns_it_from_a_page(tmp_path, monkeypatch):
    fields = {"kind": "technique", "summary": "s", "treats": []}
    alpha = Paper.parse({"slug": "a", "area": "norm", "title": "Alpha", "date": "--03-03", "votes": 5, **fields})
    monkeypatch.setattr(records, "builtin", lambda: Catalog({"a": alpha}, {}, ("norm",)))
    assert (library.paper("a").date, library.papers(since="2026")) == ("--03-03", [])
    library.import_pages([write_page(tmp_path / "1", ("Alpha", "Mar 3, 2026 4"))])
    assert (library.paper("a").date, library.paper("a").votes) == ("2026-03-03", 5)
    assert [p.slug for p in library.papers("norm", since="2026-03")] == ["a"]


def test_an_unknown_paper_is_kept_under_a_slug_of_its_title(tmp_path):
    page = write_page(tmp_path / "1", ("Seednorm", "Jan 2, 2020 3"), ("Wholly New: A Study", "Jun 1"))
    library.import_pages([page])
    new = library.paper("wholly-new-a-study")
    assert (new.title, new.area, new.status, new.record) == ("Wholly New: A Study", None, "imported", None)
    assert (new.date, new.votes, new.authors, new.summary) == ("--06-01", 0, "2 authors", "")
    assert library.paper("seednorm-2").title == "Seednorm"
    assert [p.slug for p in library.papers()][-2:] == ["seednorm-2", "wholly-new-a-study"]
    assert not {"seednorm-2", "wholly-new-a-study"} & {p.slug for p in library.papers("norm")}
    assert "seednorm-2" in {p.slug for p in library.papers(since="2020")}
    assert "wholly-new-a-study" not in {p.slug for p in library.papers(since="2020")}


def test_slugs_do_not_change_with_later_imports(tmp_path):
    library.import_pages([write_page(tmp_path / "1", ("Same!", "Jun 1"))])
    library.import_pages([write_page(tmp_path / "2", ("Sa Me", "Jun 1"), ("Sam E?", "Jun 2"), ("Other", "Jun 3"))])
    assert [p.slug for p in library.papers() if p.area is None] == ["same", "other"]


ENTRY = st.builds(
    Entry,
    st.sampled_from(["Alpha", "ALPHA", "Be ta", "Beta", "Gamma"]),
    st.just("An abstract."),
    st.sampled_from([None, 2]),
    st.none(),
    st.sampled_from([None, "--06-09", "2025-06-09"]),
    st.integers(0, 3),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ENTRY, min_size=1), st.lists(ENTRY), st.randoms())
def test_what_is_known_of_a_paper_only_grows(tmp_path_factory, first, second, order):
    os.environ["ASSAY_HOME"] = str(tmp_path_factory.mktemp("grow"))
    report = store.add(first)
    assert report.distinct == report.added == len(store.read())
    store.add(second)
    everything = first + second
    for key, entry in store.read().items():
        same = [e for e in everything if e.title.casefold().replace(" ", "") == key]
        assert entry.votes == max(e.votes for e in same)
        assert (entry.date or "") == max((e.date or "" for e in same), key=lambda date: (date[:1] == "2", date))
        assert entry.authors_count == max((e.authors_count for e in same), key=bool)
    again = store.add(order.sample(everything, len(everything)))
    assert (again.added, again.updated, again.unchanged) == (0, 0, again.distinct)


def test_nothing_is_imported_if_one_page_is_wrong(tmp_path):
    good = write_page(tmp_path / "good", ("Alpha", "Jun 1"))
    (tmp_path / "bad").write_text("Daily Papers\n\nnothing")
    with pytest.raises(UserError, match="bad' is not a Daily Papers page"):
        library.import_pages([good, tmp_path / "bad"])
    assert not store.path().exists()


@pytest.mark.parametrize("content", [b"hello", b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path, content):
    store.path().parent.mkdir()
    store.path().write_bytes(content)
    page = write_page(tmp_path / "1", ("Alpha", "Jun 1"))
    for act in (library.papers, lambda: library.import_pages([page])):
        with pytest.raises(UserError) as error:
            act()
        assert str(error.value) == f"{store.path()} is damaged; move it away and import your pages again"
    assert store.path().read_bytes() == content
    assert os.listdir(home()) == ["library.sqlite"]


def many_pages(tmp_path, count=60):
    text = random.Random(0)
    words = ["".join(text.choices("abcdefgh", k=7)) for _ in range(count)]
    return write_page(tmp_path / "many", *((f"{word} {'long ' * 40}", "Jun 1") for word in words))


def test_a_truncated_or_overwritten_file_is_damaged(tmp_path):
    page = many_pages(tmp_path)
    library.import_pages([page])
    whole = store.path().read_bytes()
    assert len(whole) > 5 * 4096
    for content in (whole[: len(whole) // 2], whole[:4096] + bytes(4096) + whole[8192:]):
        store.path().write_bytes(content)
        for act in (library.papers, lambda: library.import_pages([page])):
            with pytest.raises(UserError, match=r"library\.sqlite is damaged; move it away"):
                act()
        assert store.path().read_bytes() == content


def test_an_import_checks_the_index_that_reading_does_not_use(tmp_path):
    page = write_page(tmp_path / "1", ("Alpha Beta", "Jun 1"))
    library.import_pages([page])
    whole = store.path().read_bytes()
    assert whole.count(b"alphabeta") == 2
    content = whole[:8192] + whole[8192:].replace(b"alphabeta", b"alphabetb")
    assert content != whole
    store.path().write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        library.import_pages([page])
    assert store.path().read_bytes() == content


def test_text_that_is_not_text_is_damage(tmp_path):
    library.import_pages([write_page(tmp_path / "1", ("Alpha", "Jun 1"))])
    store.path().write_bytes(store.path().read_bytes().replace(b"Abstract of", b"Abs\xfe\xffct of"))
    with pytest.raises(UserError, match="is damaged"):
        library.papers()


def test_another_database_is_not_touched(tmp_path):
    store.path().parent.mkdir()
    with sqlite3.connect(store.path()) as other:
        other.execute("CREATE TABLE mine (a)")
    other.close()
    before = store.path().read_bytes()
    with pytest.raises(UserError, match="is not an assay library; move it away"):
        library.import_pages([write_page(tmp_path / "1", ("Alpha", "Jun 1"))])
    assert store.path().read_bytes() == before


def test_a_library_of_another_version_is_named(tmp_path):
    library.import_pages([write_page(tmp_path / "1", ("Alpha", "Jun 1"))])
    with sqlite3.connect(store.path()) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="written by another version of assay"):
        library.papers()


def test_an_empty_file_is_an_empty_library(tmp_path):
    store.path().parent.mkdir()
    store.path().touch()
    assert len(library.papers()) == len(papers())
    assert library.import_pages([write_page(tmp_path / "1", ("Alpha", "Jun 1"))]).added == 1


def test_a_full_disk_leaves_the_library_as_it_was(tmp_path, monkeypatch):
    library.import_pages([write_page(tmp_path / "1", ("Alpha", "Jun 1"))])
    before = store.path().read_bytes()
    connect = store._connect

    def small(uri):
        connection = connect(uri)
        connection.execute(f"PRAGMA max_page_count = {len(before) // 4096 + 1}")
        return connection

    page = many_pages(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_connect", small)
        with pytest.raises(AssayError, match=r"no space left to write .*library\.sqlite") as error:
            library.import_pages([page])
    assert error.value.exit_status == 1
    assert store.path().read_bytes() == before
    assert library.import_pages([page]).added == 60


def test_a_disk_too_full_for_the_directory_is_the_same_error(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    page = write_page(tmp_path / "1", ("Alpha", "Jun 1"))
    monkeypatch.setattr(pathlib.Path, "mkdir", full)
    with pytest.raises(AssayError, match="no space left to write") as error:
        library.import_pages([page])
    assert error.value.exit_status == 1


def test_a_home_that_is_a_file_is_the_users_to_change(tmp_path, monkeypatch):
    page = write_page(tmp_path / "1", ("Alpha", "Jun 1"))
    monkeypatch.setenv("ASSAY_HOME", str(page))
    with pytest.raises(UserError, match="choose another ASSAY_HOME"):
        library.import_pages([page])


def test_a_library_in_use_is_said_to_be(tmp_path, monkeypatch):
    page = write_page(tmp_path / "1", ("Alpha", "Jun 1"))
    library.import_pages([page])
    monkeypatch.setattr(
        store, "_connect", lambda uri: sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0)
    )
    holder = sqlite3.connect(store.path(), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(AssayError, match="is in use by another process") as error:
        library.import_pages([page])
    assert error.value.exit_status == 1
    holder.close()


def test_a_process_killed_before_the_end_changes_nothing(tmp_path):
    library.import_pages([write_page(tmp_path / "1", ("Alpha", "Jun 1"))])
    before = library.papers()
    script = (
        "import os, signal, sys\n"
        "from assay.catalog import library, store\n"
        "write = store._write\n"
        "def die(connection, entries):\n"
        "    connection.execute('PRAGMA cache_size = 1')\n"
        "    write(connection, entries)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store._write = die\n"
        "library.import_pages(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(many_pages(tmp_path))], check=False)
    assert killed.returncode == -9
    assert (home() / "library.sqlite-journal").exists()
    assert library.papers() == before


def test_trending_is_by_votes_then_date(tmp_path):
    page = write_page(
        tmp_path / "1",
        ("Old", "Jan 1, 2020 900"),
        ("Open", "Jun 1 900"),
        ("New", "Jan 1, 2024 900"),
        ("Top", "Jan 1, 2021 901"),
    )
    library.import_pages([page])
    assert [p.slug for p in library.trending(4)] == ["top", "new", "old", "open"]
    assert [p.slug for p in library.trending(3, since="2021")][:2] == ["top", "new"]
    assert "open" not in {p.slug for p in library.trending(1000, since="1900")}
    assert len(library.trending()) == 20
    with pytest.raises(UserError, match="limit 0"):
        library.trending(0)


def test_unknown_names_answer_with_the_nearest(tmp_path):
    library.import_pages([write_page(tmp_path / "1", ("Wholly New", "Jun 1"))])
    with pytest.raises(UserError, match="unknown paper 'wholy-new'; nearest: wholly-new"):
        library.paper("wholy-new")
    with pytest.raises(UserError, match="unknown area 'nrom'; nearest: norm"):
        library.papers(area="nrom")
    with pytest.raises(UserError, match="not a date"):
        library.papers(since="soon")
