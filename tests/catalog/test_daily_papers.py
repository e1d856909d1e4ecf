import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.catalog.daily_papers import Entry, parse_page, read_page
from assay.errors import UserError

HEADER = "new\n\nGet papers in your inbox!\n\nSubscribe\n\nDaily Papers\n\nbyAK and the community\n\n{today}\n\n"


def page(*blocks, today="Jun 9"):
    return HEADER.format(today=today) + "\n\n".join(blocks)


def block(date="Oct 17, 2024", authors="  • 6 authors", title="A Title", abstract="An abstract."):
    return f"{title}\n\n{abstract}\n\n{authors}\n·\n{date}"


def one(**parts):
    (entry,) = parse_page(page(block(**parts)))
    return entry


def test_an_entry_is_read_in_full():
    assert one(date="Oct 7, 2024 12") == Entry("A Title", "An abstract.", 6, None, "2024-10-07", 12)


def test_entries_keep_the_order_of_the_page():
    titles = ["First", "Second", "Third"]
    assert [entry.title for entry in parse_page(page(*(block(title=title) for title in titles)))] == titles


@pytest.mark.parametrize(("written", "votes"), [("", 0), (" -", 0), (" 0", 0), (" 1", 1), ("  312", 312)])
def test_votes_may_be_missing_or_a_dash(written, votes):
    assert one(date="Oct 17, 2024" + written).votes == votes
    assert one(date="Oct 17" + written).votes == votes


@pytest.mark.parametrize(
    ("line", "count", "organisation"),
    [
        ("  • 1 authors", 1, None),
        ("  • 1 author", 1, None),
        ("22 authors", 22, None),
        ("acme Acme", None, "Acme"),
        ("Acme-Labs Acme Labs", None, "Acme Labs"),
        ("acme-ai ACME AI Lab", None, "ACME AI Lab"),
        ("acme Research at Other", None, "acme Research at Other"),
        ("Acme Lab", None, "Acme Lab"),
        ("acme", None, "acme"),
    ],
)
def test_authors_are_counted_or_an_organisation(line, count, organisation):
    entry = one(authors=line)
    assert (entry.authors_count, entry.organisation) == (count, organisation)


def test_an_entry_without_details_is_a_title_and_an_abstract():
    bare = "Bare\n\nIts abstract."
    after = Entry("A Title", "An abstract.", 6, None, "2024-10-17", 0)
    assert parse_page(page(bare, block())) == [Entry("Bare", "Its abstract."), after]
    assert parse_page(page(block(), bare)) == [after, Entry("Bare", "Its abstract.")]
    assert parse_page(page(bare, "Two\n\nMore.", block()))[:2] == [
        Entry("Bare", "Its abstract."),
        Entry("Two", "More."),
    ]


def test_a_year_that_the_page_does_not_state_stays_open():
    assert one(date="Jun 9").date == "--06-09"
    assert one(date="Feb 29").date == "--02-29"


@pytest.mark.parametrize(
    ("date", "read"),
    [
        ("Jun 9", "2025-06-09"),
        ("Jan 1 4", "2025-01-01"),
        ("Jun 10", "--06-10"),
        ("Dec 31", "--12-31"),
        ("Feb 29", "--02-29"),
        ("Dec 31, 2024", "2024-12-31"),
    ],
)
def test_a_page_with_a_year_lends_it_to_days_up_to_its_own(date, read):
    (entry,) = parse_page(page(block(date=date), today="Jun 9, 2025"))
    assert entry.date == read


def test_a_page_may_lack_its_own_date_and_byline():
    assert parse_page("Daily Papers\n\n" + block()) == [one()]


def test_a_repeated_title_is_one_title():
    assert one(title="A Title\n\nA Title") == one()


def test_titles_keep_quotes_and_markup():
    title = 'Models "Don\'t" [bold]Rot[/bold]: $x^2$ & <more>'
    assert one(title=title).title == title


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path, newline):
    file = tmp_path / "page.txt"
    file.write_bytes(b"\xef\xbb\xbf" + page(block(), "Bare\n\nMore.").replace("\n", newline).encode())
    assert read_page(file) == parse_page(page(block(), "Bare\n\nMore."))


def test_spaces_are_single_and_control_characters_gone():
    assert one(title="\xa0A \x1b[31m  Title\t") == one(title="A [31m Title")


def test_blank_lines_may_hold_spaces():
    assert parse_page(page(block(), block()).replace("\n\n", "\n \t\n\n")) == [one(), one()]


WORD = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
PROSE = st.lists(WORD, min_size=1, max_size=6).map(lambda words: "X" + " ".join(words))
ENTRIES = st.builds(
    Entry,
    PROSE,
    PROSE.map(lambda text: text + "."),
    st.one_of(st.none(), st.integers(1, 99)),
    st.none(),
    st.one_of(st.dates(), st.dates().map(lambda day: "-" + day.isoformat()[4:])).map(str),
    st.integers(0, 999),
)
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def written(entry):
    year, month, day = entry.date.replace("--", "-", 1).split("-")
    date = f"{MONTHS[int(month) - 1]} {int(day)}" + (f", {year}" if year else "")
    authors = f"{entry.authors_count} authors" if entry.authors_count else "Acme"
    return block(f"{date} {entry.votes or '-'}", authors, entry.title, entry.abstract)


@given(st.lists(ENTRIES, min_size=1, max_size=5))
def test_what_is_written_is_read_back(entries):
    read = parse_page(page(*map(written, entries)))
    assert [(e.title, e.abstract, e.authors_count, e.date, e.votes) for e in read] == [
        (e.title, e.abstract, e.authors_count, e.date, e.votes) for e in entries
    ]
    assert all((e.organisation == "Acme") == (e.authors_count is None) for e in read)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no line 'Daily Papers'"),
        ("Some notes.\n\nMore notes.", "no line 'Daily Papers'"),
        ("Notes on\nDaily Papers\n\n" + block(), "no line 'Daily Papers'"),
        (page(), "no paper with its date"),
        (page("A Title\n\nAn abstract."), "no paper with its date"),
        ("<!DOCTYPE html><html>Daily Papers</html>", "it is HTML"),
        ("Daily Papers\0", "binary"),
        (page("An abstract alone.\n\n  • 6 authors\n·\nOct 17, 2024"), "line 13: expected a title and"),
        (page("  • 6 authors\n·\nOct 17, 2024"), "line 13: expected a title and"),
        (page(block(), "A Title alone"), "line 21: expected a title and"),
        (page("A Title\n\nOne.\n\nTwo.\n\n  • 6 authors\n·\nMay 3"), "line 17: expected a title and"),
        (page(block(title="x" * 301)), "line 13: expected a title, found 301 characters"),
        (page(block(date="Oct 32, 2024")), "line 19: 'Oct 32, 2024' is not a date"),
        (page(block(date="Feb 29, 2025")), "line 19: 'Feb 29, 2025' is not a date"),
        (page(block(date="17 October 2024")), "line 17: expected authors, '·' and a date"),
        (page(block(date="Oct 17, 2024 many")), "line 17: expected authors, '·' and a date"),
        (page("A Title\n\nAn abstract.\n\n·\nOct 17, 2024"), "line 17: expected authors, '·' and a date"),
        (page(block(), today="Jun 31, 2025"), "line 11: 'Jun 31, 2025' is not a date"),
    ],
)
def test_what_is_not_a_page_is_refused_with_its_line(tmp_path, text, reason):
    file = tmp_path / "page.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_page(file)
    message = str(error.value)
    assert message.startswith(f"{str(file)!r} is not a Daily Papers page: ")
    assert reason in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read '.*missing\.txt': No such file"):
        read_page(tmp_path / "missing.txt")
    with pytest.raises(UserError, match=r"cannot read '.*': Is a directory"):
        read_page(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"binary' is not a Daily Papers page: it is not UTF-8 text"):
        read_page(tmp_path / "binary")
