import json
import os
import sys
import sysconfig
from pathlib import Path

import pytest

from assay.data.corpora import corpora
from assay.data.corpora.hugging_face import HuggingFaceCorpus
from assay.data.corpora.python_stdlib import PythonStdlib
from assay.data.corpora.text import TextCorpus
from assay.data.split import Split
from assay.errors import UserError


def survey(corpus):
    return Split(corpus, validation=0.05, eval_bytes=1000).survey


def test_names():
    assert corpora.names() == ["hf", "mixture", "python-stdlib", "text"]


class TestPythonStdlib:
    def test_is_the_library_of_this_python(self):
        documents = list(PythonStdlib().documents())
        texts = {document.name: document.text for document in documents}
        assert texts["json/decoder.py"] == Path(json.decoder.__file__).read_bytes().decode()
        assert len(texts) == len(documents) > 400
        assert [d.name.split("/") for d in documents] == sorted(d.name.split("/") for d in documents)

    def test_leaves_out_tests_packages_and_what_is_of_this_machine(self):
        parts = [document.name.split("/") for document in PythonStdlib().documents()]
        folders = {folder for names in parts for folder in names[:-1]}
        assert not folders & {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
        assert not [names for names in parts if names[-1].startswith("_sysconfigdata")]

    def test_passes_over_what_is_not_utf8(self, tmp_path, monkeypatch):
        (tmp_path / "a.py").write_bytes(b"x = '\xff'")
        (tmp_path / "b.py").write_text("y = 1\n")
        (tmp_path / "c.txt").write_text("z = 1\n")
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        assert list(PythonStdlib().documents()) == [("b.py", "y = 1\n")]

    def test_a_python_without_sources(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(UserError, match=r"this Python has no library sources in .*; name a text of your own"):
            PythonStdlib().files()


class TestText:
    def test_a_file_is_a_document_with_its_line_ends(self, tmp_path):
        (tmp_path / "a.txt").write_bytes("one\r\ntwo ü\r".encode())
        corpus = TextCorpus(path=str(tmp_path / "a.txt"))
        assert list(corpus.documents()) == [("a.txt", "one\r\ntwo ü\r")]

    def test_a_folder_is_its_text_files_by_path(self, tmp_path):
        (tmp_path / "b").mkdir()
        (tmp_path / ".git").mkdir()
        (tmp_path / "b" / "a.md").write_text("in b")
        (tmp_path / "b.txt").write_text("b")
        (tmp_path / "a.py").write_text("a")
        (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
        (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
        (tmp_path / ".hidden").write_text("hidden")
        (tmp_path / ".git" / "config").write_text("hidden")
        (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
        corpus = TextCorpus(path=str(tmp_path))
        assert list(corpus.documents()) == [("a.py", "a"), ("b/a.md", "in b"), ("b.txt", "b")]

    def test_lines_of_jsonl_are_documents(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "one\\u2028", "id": 1}\n\n{"text": "zwei ü"}\n', encoding="utf-8")
        corpus = TextCorpus(path=str(tmp_path / "a.jsonl"))
        assert list(corpus.documents()) == [("a.jsonl:1", "one\u2028"), ("a.jsonl:3", "zwei ü")]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{text}", "line 2: not valid JSON: "),
            ("[1]", r"line 2: an object with a key 'text' is wanted, not \[1\]"),
            ('{"txt": "a"}', "line 2: no string under the key 'text'; nearest: txt"),
            ('{"text": null}', "line 2: no string under the key 'text'; nearest: text"),
        ],
    )
    def test_broken_jsonl(self, tmp_path, line, message):
        (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' + line)
        with pytest.raises(UserError, match=message):
            list(TextCorpus(path=str(tmp_path / "a.jsonl")).documents())

    def test_half_a_surrogate_pair(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "ab\\ud800"}\n')
        with pytest.raises(UserError, match=r"document 'a.jsonl:2': character 2 is half of a surrogate pair"):
            survey(TextCorpus(path=str(tmp_path / "a.jsonl")))

    def test_the_tilde_is_the_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "a.txt").write_text("a")
        assert [document.text for document in TextCorpus(path="~/a.txt").documents()] == ["a"]

    @pytest.mark.parametrize("content", [b"", b"a\0b", b"\xff\xfe"])
    def test_a_file_without_text(self, tmp_path, content):
        (tmp_path / "a.txt").write_bytes(content)
        wanted = "is not UTF-8 text" if content else "is empty: it holds no text"
        with pytest.raises(UserError, match=rf"corpus 'text:.*a.txt' {wanted}"):
            survey(TextCorpus(path=str(tmp_path / "a.txt")))

    @pytest.mark.parametrize("content", [None, b"", b"\0"])
    def test_a_folder_without_text(self, tmp_path, content):
        (tmp_path / "folder").mkdir()
        if content is not None:
            (tmp_path / "folder" / "a").write_bytes(content)
        with pytest.raises(UserError, match=r"corpus 'text:.*folder' is empty: it holds no text"):
            survey(TextCorpus(path=str(tmp_path / "folder")))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match=r"corpus 'text:.*nowhere': there is no such file or folder"):
            survey(TextCorpus(path=str(tmp_path / "nowhere")))

    def test_unreadable(self, tmp_path, monkeypatch):
        (tmp_path / "a.txt").write_text("a")

        def refuse(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(UserError, match=r"cannot read '.*a.txt': Permission denied"):
            survey(TextCorpus(path=str(tmp_path / "a.txt")))

    def test_unreadable_folder(self, tmp_path, monkeypatch):
        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(UserError, match=r"cannot read folder '.*': Permission denied"):
            survey(TextCorpus(path=str(tmp_path)))


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")

    @pytest.fixture
    def rows(self, tmp_path):
        folder = tmp_path / "rows"
        folder.mkdir()
        records = [{"text": f"row {n} ü", "other": n} for n in range(1500)]
        records[3]["text"] = None
        (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    def test_rows_are_documents(self, rows):
        documents = list(HuggingFaceCorpus(dataset=str(rows)).documents())
        assert documents == [(f"train/{n}", f"row {n} ü" if n != 3 else "") for n in range(1500)]

    def test_the_files_of_a_folder_are_those_in_it(self, rows):
        assert HuggingFaceCorpus(dataset=str(rows)).files() == [rows / "train.jsonl"]

    def test_name_and_configuration(self):
        corpus = HuggingFaceCorpus(dataset="owner/name:config")
        assert (corpus.name, corpus.dataset, corpus.config) == ("hf:owner/name:config", "owner/name", "config")

    def test_another_column_is_another_corpus(self):
        assert HuggingFaceCorpus(dataset="a").name != HuggingFaceCorpus(dataset="a", field="body").name

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"field": "txt"}, "has no column 'txt'; nearest: text"),
            ({"field": "other"}, "column 'other' holds int, not text"),
            ({"split": "tests"}, 'cannot be loaded: Unknown split "tests"'),
        ],
    )
    def test_wrong_options(self, rows, options, message):
        with pytest.raises(UserError, match=rf"corpus 'hf:.*rows .*{message}"):
            list(HuggingFaceCorpus(dataset=str(rows), **options).documents())

    def test_a_folder_without_data(self, tmp_path):
        with pytest.raises(UserError, match=r"corpus 'hf:.*' cannot be loaded: The directory at .* any data files"):
            list(HuggingFaceCorpus(dataset=str(tmp_path)).documents())

    def test_broken_rows_give_the_cause(self, tmp_path):
        (tmp_path / "train.jsonl").write_text("{broken")
        with pytest.raises(UserError, match=r"cannot be loaded: .*JSON") as caught:
            list(HuggingFaceCorpus(dataset=str(tmp_path)).documents())
        assert "\n" not in str(caught.value)

    def test_a_file(self, rows):
        with pytest.raises(UserError, match="is a file; hf: takes a folder or a name, text: takes a file"):
            HuggingFaceCorpus(dataset=str(rows / "train.jsonl")).files()

    def test_datasets_is_not_installed(self, rows, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(UserError, match=r"needs the package datasets: pip install 'assay\[datasets\]'"):
            list(HuggingFaceCorpus(dataset=str(rows)).documents())
