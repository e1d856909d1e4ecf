import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from assay.data.corpora.text import TextCorpus
from assay.data.split import Split
from assay.data.store import About, tokens
from assay.data.tokenizers.bpe import BPE
from assay.data.tokenizers.bytes import Bytes
from assay.data.tokenizers.hugging_face import HuggingFaceTokenizer
from assay.errors import AssayError, UserError


@pytest.fixture
def split(notes):
    return Split(TextCorpus(path=str(notes)), validation=0.2, eval_bytes=3000)


def folder_of(home, key):
    return home / "cache" / "tokens" / key


def documents(ids, separator):
    """The ids of each document, from an array in which each is preceded by the separator."""
    assert ids[0] == separator
    return np.split(ids, np.flatnonzero(ids == separator))[1:]


def test_each_document_follows_a_separator(split):
    made = tokens(split, Bytes())
    train = b"".join(b"|" + text.encode() for text in split.training())
    assert "|" not in "".join(split.training())
    expected = np.frombuffer(train, np.uint8).astype(np.uint16)
    expected[expected == ord("|")] = 256
    np.testing.assert_array_equal(made.train, expected)
    assert made.about.eval_bytes == len("".join(split.evaluation()).encode())
    assert made.about == About(257, 256, made.about.eval_bytes, len(made.train), len(made.validation))


@pytest.mark.parametrize("batch_characters", [1, 700, 10**6])
def test_documents_come_back_whatever_the_batch(split, monkeypatch, batch_characters):
    monkeypatch.setattr("assay.data.store.BATCH_CHARACTERS", batch_characters)
    tokenizer = BPE(split, vocab_size=300)
    made = tokens(split, tokenizer)
    assert [tokenizer.decode(ids) for ids in documents(made.train, 299)] == list(split.training())
    assert [tokenizer.decode(ids) for ids in documents(made.validation, 299)] == split.evaluation()


def test_a_text_that_spells_the_separator_out(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    (tmp_path / "b.txt").write_text("<|endoftext|>")
    split = Split(TextCorpus(path=str(tmp_path)), validation=0.2, eval_bytes=3000)
    for tokenizer in (Bytes(), BPE(split, vocab_size=270)):
        made = tokens(split, tokenizer)
        for ids, text in ((made.train, next(split.training())), (made.validation, split.evaluation()[0])):
            assert np.count_nonzero(ids == tokenizer.separator) == 1
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_the_width_fits_the_largest_id(vocab_size, dtype):
    about = About(vocab_size, 0, 0, 0, 0)
    assert about.dtype == np.dtype(dtype)
    assert np.array([vocab_size - 1]).astype(about.dtype)[0] == vocab_size - 1


class Wide(Bytes):
    """Bytes with large ids, which two bytes a token could not hold."""

    identity = "wide"
    vocab_size = 70257
    separator = 70256

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) + 70000 for text in texts]

    def decode(self, ids):
        return bytes(id - 70000 for id in ids).decode()


def test_a_large_vocabulary(split):
    wide, narrow = tokens(split, Wide()), tokens(split, Bytes())
    np.testing.assert_array_equal(wide.train.astype(np.int64) - 70000, narrow.train)
    assert wide.train.dtype.itemsize == 4


class TestKey:
    def test_it_is_of_content_split_and_tokenizer(self, notes, split):
        corpus = TextCorpus(path=str(notes))
        keys = [
            tokens(split, Bytes()).key,
            tokens(split, BPE(split, vocab_size=300)).key,
            tokens(Split(corpus, validation=0.3, eval_bytes=3000), Bytes()).key,
            tokens(Split(corpus, validation=0.2, eval_bytes=2000), Bytes()).key,
        ]
        (notes / "00.txt").write_text("another")
        keys.append(tokens(Split(corpus, validation=0.2, eval_bytes=3000), Bytes()).key)
        assert len(set(keys)) == 5

    def test_the_place_of_the_corpus_is_not_in_it(self, notes, split, tmp_path):
        shutil.copytree(notes, tmp_path / "elsewhere")
        elsewhere = Split(TextCorpus(path=str(tmp_path / "elsewhere")), validation=0.2, eval_bytes=3000)
        assert tokens(elsewhere, Bytes()).key == tokens(split, Bytes()).key

    def test_a_saved_tokenizer_gives_the_same_tokens(self, split, tmp_path):
        for tokenizer in (Bytes(), BPE(split, vocab_size=300)):
            tokenizer.save(tmp_path / tokenizer.name)
            saved = HuggingFaceTokenizer(folder=str(tmp_path / tokenizer.name))
            here, there = tokens(split, tokenizer), tokens(split, saved)
            assert here.about == there.about
            np.testing.assert_array_equal(here.train, there.train)
            np.testing.assert_array_equal(here.validation, there.validation)


class TestCache:
    def test_a_second_call_reads_no_text_and_makes_nothing(self, notes, split, settled, monkeypatch):
        made = tokens(split, Bytes())
        monkeypatch.setattr("assay.data.store._make", None)
        monkeypatch.setattr(TextCorpus, "documents", None)
        again = Split(TextCorpus(path=str(notes)), validation=0.2, eval_bytes=3000)
        np.testing.assert_array_equal(tokens(again, Bytes()).train, made.train)

    @pytest.mark.parametrize("name", ["train.bin", "validation.bin", "about.json"])
    @pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "missing"])
    def test_damage_is_repaired(self, split, home, name, damage):
        before = tokens(split, Bytes())
        train, validation = np.array(before.train), np.array(before.validation)
        path = folder_of(home, before.key) / name
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            damaged = {"truncated": content[: len(content) // 2], "longer": content + b"\0\0", "empty": b""}
            path.unlink()
            path.write_bytes(damaged[damage])
        after = tokens(split, Bytes())
        np.testing.assert_array_equal(after.train, train)
        np.testing.assert_array_equal(after.validation, validation)
        assert path.read_bytes() == content
        assert [entry.name for entry in path.parent.parent.iterdir()] == [before.key]

    @pytest.mark.parametrize("field", [*(f.name for f in dataclasses.fields(About)), "checksum"])
    @pytest.mark.parametrize("value", [1, "x", None])
    def test_changed_numbers_are_noticed(self, split, home, field, value):
        about = tokens(split, Bytes()).about
        path = folder_of(home, tokens(split, Bytes()).key) / "about.json"
        content = path.read_text()
        path.write_text(json.dumps({**json.loads(content), field: value}))
        assert tokens(split, Bytes()).about == about
        assert path.read_text() == content

    @pytest.mark.parametrize("content", ["[]", "3", "{}", '{"vocab_size": 257}'])
    def test_other_json_is_noticed(self, split, home, content):
        key = tokens(split, Bytes()).key
        path = folder_of(home, key) / "about.json"
        path.write_text(content)
        assert tokens(split, Bytes()).about.vocab_size == 257
        assert len(path.read_text()) > len(content)

    def test_validation_ids_that_changed_are_noticed(self, split, home):
        key = tokens(split, Bytes()).key
        path = folder_of(home, key) / "validation.bin"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:10] + b"\1" + content[11:])
        assert content[10] != 1
        np.testing.assert_array_equal(tokens(split, Bytes()).validation, np.frombuffer(content, "<u2"))

    def test_a_file_in_its_place(self, split, home):
        key = tokens(split, Bytes()).key
        shutil.rmtree(folder_of(home, key))
        folder_of(home, key).write_text("in the way")
        assert tokens(split, Bytes()).about.vocab_size == 257


class TestFailure:
    def test_no_space_left(self, split, home, monkeypatch):
        def full(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        split.key  # noqa: B018
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(AssayError, match=r"no space left to write '.*/cache/tokens/\w+'") as caught:
            tokens(split, Bytes())
        assert caught.value.exit_status == 1
        assert list((home / "cache" / "tokens").iterdir()) == []
        monkeypatch.undo()

    def test_the_cache_is_not_a_folder(self, split, home):
        home.mkdir()
        (home / "cache").write_text("")
        with pytest.raises(AssayError, match=r"cannot write '.*/cache/tokens/\w+': Not a directory"):
            tokens(split, Bytes())

    def test_stopped_in_between(self, split, home, monkeypatch):
        def stop(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr("assay.data.store.write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            tokens(split, Bytes())
        assert list((home / "cache" / "tokens").iterdir()) == []

    def test_the_corpus_changes(self, notes, split, home):
        split.key  # noqa: B018
        (notes / "00.txt").write_text("changed")
        with pytest.raises(AssayError, match="changed while it was read; run the command again"):
            tokens(split, Bytes())
        assert list((home / "cache" / "tokens").iterdir()) == []

    def test_something_damages_it_all_the_time(self, split, home, monkeypatch):
        from assay.data import store

        write = store._write

        def write_badly(folder, *arguments):
            write(folder, *arguments)
            (folder / "train.bin").write_bytes(b"")

        monkeypatch.setattr(store, "_write", write_badly)
        with pytest.raises(AssayError, match="is damaged as soon as it is written"):
            tokens(split, Bytes())

    def test_a_tokenizer_that_loses_text(self, split, tmp_path):
        BPE(split, vocab_size=300).save(tmp_path / "lower")
        path = tmp_path / "lower" / "tokenizer.json"
        content = json.loads(path.read_text())
        path.write_text(
            json.dumps({**content, "normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": ""}})
        )
        with pytest.raises(UserError, match=r"tokenizer 'hf:.*lower' does not give back the text .* a lossless one"):
            tokens(split, HuggingFaceTokenizer(folder=str(tmp_path / "lower")))

    def test_a_tokenizer_that_composes_characters_is_lossless(self, tmp_path, tmp_path_factory):
        (tmp_path / "a.txt").write_text("e\u0301")
        (tmp_path / "b.txt").write_text("o\u0308")
        split = Split(TextCorpus(path=str(tmp_path)), validation=0.2, eval_bytes=3000)
        saved = tmp_path_factory.mktemp("composing")
        Bytes().save(saved)
        path = saved / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "NFC"}}))
        made = tokens(split, HuggingFaceTokenizer(folder=str(saved)))
        assert (len(made.validation), made.about.eval_bytes) == (3, 3)

    def test_a_tokenizer_that_writes_its_separator(self, split):
        class Marked(Bytes):
            identity = "marked"

            def encode_batch(self, texts):
                return [np.append(ids.astype(np.int64), 256) for ids in super().encode_batch(texts)]

        with pytest.raises(UserError, match="'bytes' writes its end-of-text token 256 into texts"):
            tokens(split, Marked())


PREPARE = """
import sys
from assay.data.corpora.text import TextCorpus
from assay.data.split import Split
from assay.data.store import tokens
from assay.data.tokenizers.bpe import BPE
split = Split(TextCorpus(path=sys.argv[1]), validation=0.2, eval_bytes=3000)
tokenizer = BPE(split, vocab_size=300)
print("ready", flush=True)
sys.stdin.readline()
made = tokens(split, tokenizer)
print(made.key, int(made.train.astype("i8").sum()), int(made.validation.astype("i8").sum()))
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_prepare_at_once(notes, split, home, damaged):
    expected = tokens(split, BPE(split, vocab_size=300))
    sums = [int(ids.astype("i8").sum()) for ids in (expected.train, expected.validation)]
    if damaged:
        (folder_of(home, expected.key) / "validation.bin").unlink()
    else:
        shutil.rmtree(home)
    command = [sys.executable, "-c", PREPARE, str(notes)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        assert output.split() == [expected.key, *map(str, sums)]
    assert [entry.name for entry in (home / "cache" / "tokens").iterdir()] == [expected.key]


def test_another_process_is_faster(split, home, monkeypatch):
    """Between looking and renaming, somebody else puts whole files there: those are used."""
    from assay.data import store

    write = store._write

    def write_twice(folder, *arguments):
        monkeypatch.setattr(store, "_write", write)
        tokens(split, Bytes())
        write(folder, *arguments)

    monkeypatch.setattr(store, "_write", write_twice)
    made = tokens(split, Bytes())
    assert [entry.name for entry in (home / "cache" / "tokens").iterdir()] == [made.key]


def test_another_process_renames_at_the_last_moment(split, home, monkeypatch):
    rename = os.rename

    def late(source, target):
        if os.path.basename(source).startswith(".partial-"):
            monkeypatch.setattr(os, "rename", rename)
            shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    made = tokens(split, Bytes())
    assert os.rename is rename
    assert [entry.name for entry in (home / "cache" / "tokens").iterdir()] == [made.key]
