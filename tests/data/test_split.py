import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.data.corpora import Corpus, Document
from assay.data.corpora.text import TextCorpus
from assay.data.split import Split, paragraphs
from assay.errors import AssayError, UserError


class Given(Corpus):
    """Documents that a test makes up; counts how often they are read."""

    def __init__(self, texts, name="given"):
        self.name = name
        self.texts = list(texts)
        self.passes = 0

    def documents(self):
        self.passes += 1
        return (Document(str(number), text) for number, text in enumerate(self.texts))

    def files(self):
        return []


def split(texts, validation=0.05, eval_bytes=10**9):
    return Split(Given(texts), validation=validation, eval_bytes=eval_bytes)


def share(text):
    """The hash of a text as a number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()[:8]) / 2**64


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2)


@given(texts.filter(lambda texts: len(set(texts)) > 1), st.floats(0.01, 0.49))
def test_each_document_is_on_one_side(documents, validation):
    made = split(documents, validation)
    training, held_out = list(made.training()), made.evaluation()
    assert training
    assert held_out
    assert not set(training) & set(held_out)
    assert set(training) | set(held_out) == set(documents)
    assert training == [text for text in documents if text not in held_out]
    assert held_out == sorted(set(held_out), key=share)


@given(texts.filter(lambda texts: len(set(texts)) > 1), st.randoms())
def test_the_side_does_not_depend_on_order_or_copies(documents, random):
    shuffled = documents + random.choices(documents, k=3)
    random.shuffle(shuffled)
    assert split(shuffled, 0.3).evaluation() == split(documents, 0.3).evaluation()
    assert set(split(shuffled, 0.3).training()) == set(split(documents, 0.3).training())


def test_the_fraction_is_that_of_the_hashes():
    documents = [f"document {number}" for number in range(4000)]
    held_out = split(documents, 0.05).evaluation()
    assert held_out == sorted((text for text in documents if share(text) < 0.05), key=share)
    assert 150 < len(held_out) < 250


@pytest.mark.parametrize("below", [True, False])
def test_neither_side_is_empty_where_all_hashes_lie_on_one(below):
    documents = [text for text in map(str, range(100)) if (share(text) < 0.4) == below][:3]
    low, *between, high = sorted(documents, key=share)
    assert len(between) == 1
    made = split(documents, 0.4)
    assert made.evaluation() == ([low, *between] if below else [low])
    assert sorted(made.training(), key=share) == ([high] if below else [*between, high])


def test_a_larger_fraction_keeps_what_a_smaller_one_had():
    documents = [f"document {number}" for number in range(400)]
    assert set(split(documents, 0.1).evaluation()) < set(split(documents, 0.2).evaluation())


@given(texts.filter(lambda texts: len(set(texts)) > 1), st.integers(4, 60))
def test_the_evaluation_is_the_first_bytes_of_the_validation_text(documents, eval_bytes):
    whole = "".join(split(documents, 0.4).evaluation())
    cut = "".join(split(documents, 0.4, eval_bytes).evaluation())
    assert whole.startswith(cut)
    size = len(cut.encode())
    assert size <= eval_bytes
    assert cut == whole or size > eval_bytes - 4
    assert list(split(documents, 0.4, eval_bytes).training()) == list(split(documents, 0.4).training())


def test_the_evaluation_is_cut_at_a_character():
    documents = ["🙂🙂", "🙃🙃🙃"]
    assert split(documents, eval_bytes=7).evaluation() == [min(documents, key=share)[:1]]
    assert split(documents, eval_bytes=8).evaluation() == [min(documents, key=share)[:2]]


def test_empty_documents_do_not_count():
    assert split(["", "a", "", "b", ""]).survey.evaluation == split(["a", "b"]).survey.evaluation
    with pytest.raises(UserError, match=r"corpus 'given' is empty: it holds no text"):
        split(["", ""]).evaluation()


@pytest.mark.parametrize("documents", [["no line end"], ["again", "again"], ["one line\n"]])
def test_nothing_to_split(documents):
    with pytest.raises(UserError, match=r"'given' holds only one text, and no line end at which to split it"):
        split(documents).evaluation()


@given(st.text(st.sampled_from("ab \r\n\n"), max_size=400))
def test_paragraphs_joined_are_the_text(text):
    pieces = list(paragraphs(text))
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    assert all(len(piece) >= max(1, len(text) // 20) for piece in pieces if text)


def test_paragraphs_end_at_blank_lines():
    short = "a" * 50 + "\n"
    text = (short * 45 + "\n") * 30
    assert list(paragraphs(text)) == [short * 45 + "\n"] * 30
    assert list(paragraphs(text.replace("\n", "\r\n"))) == [(short * 45 + "\n").replace("\n", "\r\n")] * 30


def test_paragraphs_keep_indentation_with_its_line():
    assert list(paragraphs("a\n\n  b\n \n  c")) == ["a\n\n", "  b\n \n", "  c"]


def test_lines_end_paragraphs_where_no_line_is_blank():
    line = "a" * 63 + "\n"
    assert list(paragraphs(line * 1280)) == [line * 128] * 10
    assert list(paragraphs(line * 10)) == [line * 2] * 5


def test_one_document_is_split_by_its_paragraphs():
    pieces = [f"paragraph {number} " + "x" * 200 + "\n\n" for number in range(100)]
    by_paragraph, by_document = split(["".join(pieces)]), split(list(paragraphs("".join(pieces))))
    assert by_paragraph.evaluation() == by_document.evaluation()
    assert list(by_paragraph.training()) == list(by_document.training())
    assert len("".join(by_paragraph.training())) + len("".join(by_paragraph.evaluation())) == len("".join(pieces))


def test_the_key_is_of_names_contents_and_options():
    keys = {
        split(["ab", "c"]).key,
        split(["a", "bc"]).key,
        split(["c", "ab"]).key,
        split(["ab", "c", "c"]).key,
        split(["ab", "c"], validation=0.06).key,
        split(["ab", "c"], eval_bytes=10**8).key,
    }
    assert len(keys) == 6
    assert Split(Given(["ab", "c"], "another"), validation=0.05, eval_bytes=10**9).key in keys


def test_a_corpus_that_changes_between_two_readings():
    made = split(["a", "b", "c"])
    assert len([*made.training(), *made.evaluation()]) == 3
    made.corpus.texts[1] = "B"
    with pytest.raises(AssayError, match=r"corpus 'given' changed while it was read; run the command again"):
        list(made.training())


class TestMemo:
    """``key`` does not read files again that have not changed."""

    @pytest.fixture
    def read(self, monkeypatch):
        reads = []
        original = TextCorpus.documents
        monkeypatch.setattr(TextCorpus, "documents", lambda self: reads.append(self.name) or original(self))
        return reads

    def key(self, folder):
        return Split(TextCorpus(path=str(folder)), validation=0.05, eval_bytes=1000).key

    def test_unchanged(self, notes, settled, read):
        first = self.key(notes)
        assert self.key(notes) == first
        assert len(read) == 1

    def test_options_of_the_split_need_no_reading(self, notes, settled, read):
        first = self.key(notes)
        assert Split(TextCorpus(path=str(notes)), validation=0.06, eval_bytes=1000).key != first
        assert len(read) == 1

    def test_files_changed_a_moment_ago_are_read_again(self, notes, read):
        assert self.key(notes) == self.key(notes)
        assert len(read) == 2

    def test_same_size_and_time_of_modification(self, notes, settled):
        first = self.key(notes)
        path = notes / "00.txt"
        before, content = path.stat(), path.read_bytes()
        path.write_bytes(content.swapcase())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        second = self.key(notes)
        assert second != first
        path.write_bytes(content)
        assert self.key(notes) == first

    @pytest.mark.parametrize("change", ["add", "remove", "rename"])
    def test_other_files(self, notes, settled, change):
        first = self.key(notes)
        if change == "add":
            (notes / "new.txt").write_text("new")
        elif change == "remove":
            (notes / "00.txt").unlink()
        else:
            (notes / "00.txt").rename(notes / "zz.txt")
        assert self.key(notes) != first

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"content"', "\xff"])
    def test_a_damaged_memo_is_made_again(self, home, notes, settled, read, content):
        first = self.key(notes)
        (memo,) = (home / "cache" / "corpora").iterdir()
        memo.write_text(content, encoding="latin-1")
        assert self.key(notes) == first
        assert self.key(notes) == first
        assert len(read) == 2

    def test_without_a_place_for_it(self, home, notes, settled, read):
        home.mkdir()
        (home / "cache").write_text("a file, not a folder")
        assert self.key(notes) == self.key(notes)
        assert len(read) == 2
