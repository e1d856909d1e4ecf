"""Qualities of documents: worked scores, and files of scores."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest

from assay.data.corpora import Document
from assay.data.quality import qualities, scores
from assay.errors import UserError


def score(name, text, **options):
    return qualities.build(name, options).score(Document("it", text))


def test_compression_is_the_ratio_of_bytes():
    assert score("compression", "é" * 500) == len(zlib.compress(("é" * 500).encode())) / 1000
    lines = [f"line {n * n % 97} of {n}" for n in range(60)]
    assert score("compression", "\n".join(lines[:1] * 60)) < 0.1 < 0.3 < score("compression", "\n".join(lines))


def test_clean_is_the_share_of_characters_of_prose():
    assert score("clean", 'He said: "No, (2) won\'t do!"') == 1
    assert score("clean", "ab#$") == 0.5
    assert score("clean", "x_y\n") == 0.75
    assert score("clean", "naïve\t模型") == 1


def test_the_reference_gives_the_probability_of_each_byte(tmp_path):
    (tmp_path / "good.txt").write_text("abab")
    single = {"a": 3 / 260, "b": 3 / 260, "c": 1 / 260}
    expected = [single["a"], (2 + single["b"]) / 3, (0 + single["c"]) / 2]
    found = score("reference", "abc", path=str(tmp_path / "good.txt"))
    assert found == pytest.approx(sum(map(math.log2, expected)) / 3)


def test_the_reference_is_a_distribution(tmp_path):
    (tmp_path / "good.txt").write_text("the norm of a stream grows")
    measure = qualities.build("reference", {"path": str(tmp_path)})
    single, paired = measure._tables
    assert np.exp2(single).sum() == pytest.approx(1)
    np.testing.assert_allclose(np.exp2(paired).sum(1), 1)
    assert measure.score(Document("", "the stream")) > measure.score(Document("", "htesrtaem "))


def test_an_empty_reference(tmp_path):
    (tmp_path / "good.txt").write_text("")
    with pytest.raises(UserError, match="holds no text"):
        score("reference", "a", path=str(tmp_path))


def test_scores_are_read_by_name(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"name": "it", "score": 2}\n\n{"name": "other", "score": -0.5, "by": "me"}\n')
    measure = qualities.build("scores", {"file": str(path)})
    assert measure.score(Document("it", "x")) == 2
    assert measure.score(Document("other", "x")) == -0.5
    with pytest.raises(UserError, match="has no score for the document 'third'"):
        measure.score(Document("third", "x"))
    before = measure.identity()
    path.write_text('{"name": "it", "score": 3}\n')
    assert qualities.build("scores", {"file": str(path)}).identity() != before


@pytest.mark.parametrize(
    "line", ["[1]", '{"name": "it"}', '{"name": "it", "score": NaN}', "{", '{"name":1,"score":1}']
)
def test_a_line_that_is_no_score(tmp_path, line):
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps({"name": "it", "score": 1}) + "\n" + line)
    with pytest.raises(UserError, match="line 2: an object like"):
        score("scores", "x", file=str(path))


def test_scores_are_kept_by_content_and_measure(home):
    reads = []

    def read():
        reads.append(1)
        return iter([Document("a", "x#"), Document("b", "yy")])

    clean, compression = qualities.build("clean"), qualities.build("compression")
    assert scores(clean, "key", read).tolist() == scores(clean, "key", read).tolist() == [0.5, 1]
    assert len(reads) == 1
    scores(clean, "another", read)
    scores(compression, "key", read)
    assert len(reads) == 3
    for path in (home / "cache" / "scores").iterdir():
        path.write_text("{")
    assert scores(clean, "key", read).tolist() == [0.5, 1]
