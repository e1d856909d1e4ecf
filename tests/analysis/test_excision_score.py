from __future__ import annotations

import json
import random
import sys
from itertools import combinations, pairwise

import pytest

from assay.analysis.excision_score import common_subsequence, excise, excision_score, score_tokens, tokens_of
from assay.cli import main


@pytest.mark.parametrize(
    ("original", "reference", "predicted", "score"),
    [
        ("a b c d", "a X c d", "a Y c d", 0.5),
        ("a b c d", "a X c d", "a X c d", 1),
        ("a b c d", "a X c d", "a b c d", 0),
        ("a b c d", "a c d", "a c d", 1),
        ("a b c d", "a c d", "a Z c d", 2 / 3),
        ("a b c d", "a b c d", "a b c d", 1),
        ("a b c d", "a b c d", "a b c d e", 0),
        ("", "new text", "new", 2 / 3),
        ("", "", "", 1),
    ],
)
def test_by_hand(original, reference, predicted, score) -> None:
    assert excision_score(original, reference, predicted).score == pytest.approx(score)


def test_precision_recall_and_regions_by_hand() -> None:
    """The reference replaces b and adds e; the prediction replaces b otherwise, adds e, and drops d."""
    found = excision_score("a b c d", "a X c d e", "a Y c e")
    assert (found.hits, found.reference_edits, found.predicted_edits, found.shared) == (2, 3, 4, 2)
    assert found.precision == 2 / 4
    assert found.recall == pytest.approx(2 / 3)
    assert [(r.original, r.reference, r.predicted) for r in found.regions] == [
        (("b",), ("X",), ("Y",)),
        (("d",), ("d", "e"), ("e",)),
    ]
    assert found.pairwise == pytest.approx(2 * 3 / 9)


def triples(count: int, letters: str = "abcd"):
    generator = random.Random(0)

    def revise(tokens: list[str]) -> list[str]:
        made: list[str] = []
        for token in tokens:
            action = generator.random()
            made += [] if action < 0.15 else [generator.choice(letters), token] if action < 0.3 else [token]
        return made

    for _ in range(count):
        original = [generator.choice(letters) for _ in range(generator.randrange(9))]
        yield original, revise(original), revise(original)


def test_what_all_share_at_either_end_changes_nothing_though_the_pairwise_measure_rises() -> None:
    generator = random.Random(1)
    for documents in triples(200):
        before = [generator.choice("abcd") for _ in range(30)]
        after = ["end", *(generator.choice("abcd") for _ in range(20))]
        plain, within = score_tokens(*documents), score_tokens(*([*before, *d, *after] for d in documents))
        assert (plain.hits, plain.reference_edits, plain.predicted_edits) == (
            within.hits,
            within.reference_edits,
            within.predicted_edits,
        )
        assert within.pairwise >= plain.pairwise
    prefix = "p " * 60
    assert excision_score(prefix + "a b c d", prefix + "a X c d", prefix + "a Y c d").score == 0.5
    assert excision_score(prefix + "a b c d", prefix + "a X c d", prefix + "a Y c d").pairwise == pytest.approx(
        63 / 64
    )


def test_limits_hold_for_every_triple() -> None:
    for original, reference, predicted in triples(300):
        assert 0 <= score_tokens(original, reference, predicted).score <= 1
        assert score_tokens(original, reference, reference).score == 1
        assert score_tokens(original, reference, original).score == (1 if reference == original else 0)


def test_revisions_may_change_places_where_what_they_share_is_unique() -> None:
    generator = random.Random(2)
    for _ in range(100):
        original = list("abcdefgh")
        one, other = (
            [t if generator.random() < 0.7 else generator.choice("XYZ") for t in original] for _ in range(2)
        )
        assert score_tokens(original, one, other).score == score_tokens(original, other, one).score


def test_cutting_leaves_the_documents() -> None:
    """Shared tokens and regions together have each document's tokens."""
    for documents in triples(200):
        shared, regions = excise(*documents)
        for document, name in zip(documents, ("original", "reference", "predicted"), strict=True):
            assert shared + sum(len(getattr(region, name)) for region in regions) == len(document)


def brute_force(a, b) -> int:
    for size in range(min(len(a), len(b)), 0, -1):
        if {tuple(c) for c in combinations(a, size)} & {tuple(c) for c in combinations(b, size)}:
            return size
    return 0


def test_the_subsequence_is_common_and_as_long_as_by_trying_all() -> None:
    for _, a, b in triples(200, "abc"):
        pairs = common_subsequence(a, b)
        assert len(pairs) == brute_force(a, b)
        assert all(a[i] == b[j] for i, j in pairs)
        assert all(p[0] < q[0] and p[1] < q[1] for p, q in pairwise(pairs))


def test_edits_of_unique_tokens_are_those_of_difflib() -> None:
    """Where no token comes twice and none moves, the alignment is unique and difflib finds it too."""
    from difflib import SequenceMatcher

    generator = random.Random(3)
    for _ in range(100):
        original = [str(n) for n in range(30)]
        revision: list[str] = []
        for position, token in enumerate(original):
            action = generator.random()
            revision += [] if action < 0.2 else [f"new{position}", token] if action < 0.3 else [token]
        found = score_tokens(original, revision, original)
        blocks = SequenceMatcher(None, original, revision, autojunk=False).get_matching_blocks()
        kept = sum(block.size for block in blocks)
        assert found.reference_edits == len(original) + len(revision) - 2 * kept
        assert found.shared == kept


def test_tokens_of_code() -> None:
    assert tokens_of("if x_1 >= 2:\n    y  = 3") == ["if", "x_1", ">", "=", "2", ":", "\n    ", "y", "=", "3"]


@pytest.fixture
def assay(monkeypatch, capsys):
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", "analyse", "excision-score", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


def test_the_command_scores_three_files_and_json_lines(assay, tmp_path) -> None:
    texts = {"original": "a b c d", "reference": "a X c d", "predicted": "a Y c d"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    status, out, err = assay(*(tmp_path / name for name in texts), "--regions")
    assert (status, err) == (0, "")
    assert out.splitlines()[1].split() == ["1", "0.500", "0.500", "0.500", *["1", "of", "2,", "2", "made"], "0.750"]
    assert out.splitlines()[2:] == ["1: original 'b', reference 'X', predicted 'Y'", "mean 0.5000 of 1"]
    lines = tmp_path / "examples.jsonl"
    lines.write_text(json.dumps(texts) + "\n\n" + json.dumps(texts | {"predicted": "a X c d"}) + "\n")
    status, out, err = assay(lines, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["mean"] == 0.75
    assert [example["score"] for example in document["examples"]] == [0.5, 1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json\n", "line 1: no JSON; each line is one object"),
        ('{"original": "a", "reference": "b"}', "line 1: not an object with the strings original, reference, pred"),
        ("[1]", "line 1: not an object"),
        ("\n", "has no examples; write one JSON object a line"),
        ("\0", "is no UTF-8 text"),
    ],
)
def test_a_bad_file_is_one_line(assay, tmp_path, content, reason) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    status, out, err = assay(tmp_path / "bad.jsonl")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert reason in err


def test_missing_files_and_a_wrong_number_of_them(assay, tmp_path) -> None:
    assert assay(tmp_path / "none")[2].startswith("error: cannot read")
    status, _, err = assay(tmp_path, tmp_path)
    assert (status, err) == (
        2,
        "error: 2 files given; give original, reference, predicted, or one of JSON lines\n",
    )
