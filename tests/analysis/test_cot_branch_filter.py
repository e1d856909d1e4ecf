"""Branching of traces, the filter, and transitions between labelled steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.analysis.cot_branch_filter import branching, keep_least, step_difference, steps, transitions
from assay.cli import main
from assay.errors import UserError


class TestBranching:
    def test_worked_numbers(self):
        assert branching(["Let x=1.", "Perhaps try y.", "So z=2.", "Alternatively w."]) == 0.5
        assert branching("Let x=1.\n\nPerhaps, or\nPerhaps not.\n\nSo z=2.\n\nAlternatively w.") == 0.5

    def test_words_count_whole_as_written_and_once_a_step(self):
        assert branching(["Perhaps Another way", "Anotherson did", "perhaps", "un-Perhaps?"]) == 0.5
        assert branching(["Wait, no", "Perhaps"], ["Wait", "Hmm"]) == 0.5
        assert branching(["a.c", "abc"], ["a.c"]) == 0.5

    def test_steps_are_paragraphs_or_else_lines(self):
        assert steps("one\ntwo\n\n three\n \t\nfour\n") == ["one\ntwo", "three", "four"]
        assert steps("one\n two\n") == ["one", "two"]
        assert steps("") == steps("\n\n") == []
        assert branching("") == 0

    def test_the_answer_of_a_gsm8k_trace_is_no_step(self):
        trace = "She sold 48/2 = <<48/2=24>>24 clips in May.\nPerhaps 48+24 = 72 in all.\n#### 72"
        assert len(steps(trace)) == 2
        assert branching(trace) == 0.5
        assert steps("#### 72") == []

    def test_no_keywords(self):
        with pytest.raises(UserError, match="no keywords to look for"):
            branching("a", [])


def test_the_difference_of_steps_is_relative_to_the_other_teacher():
    assert step_difference("a\nb", "c\nd") == 0
    assert step_difference("a\nb\nc\nd", "e\nf") == 1
    assert step_difference("a", "b\nc") == -0.5
    with pytest.raises(UserError, match="the other trace has no step"):
        step_difference("a", "")


class TestKeep:
    def test_all_in_order_or_the_lowest(self):
        assert keep_least([0.5, 0.1, 0.3], 1) == [0, 1, 2]
        assert keep_least([0.5, 0.1, 0.3], 0.5) == [1, 2]
        assert keep_least([0.2] * 10, 0.9) == list(range(9))
        assert keep_least([], 0.9) == []

    @given(st.lists(st.integers(0, 5), min_size=1), st.floats(0.01, 1), st.randoms())
    def test_none_that_is_kept_scores_above_one_that_is_not(self, scores, keep, random):
        kept = keep_least(scores, keep)
        left = [score for place, score in enumerate(scores) if place not in kept]
        assert kept == sorted(kept)
        assert len(kept) >= keep * len(scores) - 1e-6 > len(kept) - 1 - 1e-5
        assert not left or max(scores[place] for place in kept) <= min(left)
        order = list(range(len(scores)))
        random.shuffle(order)
        again = keep_least([scores[place] for place in order], keep)
        assert sorted(scores[order[place]] for place in again) == sorted(scores[place] for place in kept)

    @pytest.mark.parametrize("keep", [0, -1, 1.1])
    def test_no_share(self, keep):
        with pytest.raises(UserError, match="is no share of the traces to keep"):
            keep_least([1.0], keep)


def test_transitions_of_labelled_steps():
    found = transitions([list("PPDPDD")])
    assert found.shares == {"D": 0.5, "P": 0.5}
    assert found.following == {"P": {"P": 1 / 3, "D": 2 / 3}, "D": {"P": 0.5, "D": 0.5}}
    two = transitions([list("PD"), list("P")])
    assert two.following == {"P": {"D": 1.0}}
    assert two.shares == {"D": 1 / 3, "P": 2 / 3}


@pytest.fixture
def assay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["assay", "analyse", "cot-branch-filter", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return (int(left.value.code or 0), *capsys.readouterr())

    return run


def test_the_command_writes_the_lines_that_branch_least(tmp_path: Path, assay: Callable[..., tuple[int, str, str]]):
    traces = ["a\nb\n#### 1", "Perhaps a\nb\nc\nd", "a\nAnother b", "a"]
    lines = [json.dumps({"question": str(n), "answer": trace}) for n, trace in enumerate(traces)]
    (tmp_path / "traces.jsonl").write_text("\n".join(lines) + "\n\n")
    arguments = [str(tmp_path / "traces.jsonl"), "--keep", "0.75", "--out", str(tmp_path / "kept.jsonl")]
    status, shown, _ = assay(*arguments)
    assert status == 0
    assert (tmp_path / "kept.jsonl").read_text().splitlines() == [lines[0], lines[1], lines[3]]
    assert "0 of the 1 dropped are among the 1 longest" in shown
    assert json.loads(assay(*arguments, "--json")[1]) == {"branching": [0, 0.25, 0.5, 0], "kept": [0, 1, 3]}
    assert json.loads(assay(*arguments, "--json", "--keyword", "a")[1])["branching"] == [0.5, 0.25, 0.5, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"answr": "a"}', "line 1: no string under the key 'answer'; nearest: answr"),
        ("[1]", "line 1: no string under the key 'answer'; an object is wanted"),
        ("{", "line 1: no JSON; each line is one object"),
        ("\n", "has no traces; write one JSON object a line"),
    ],
)
def test_files_that_hold_no_traces(
    content: str, message: str, tmp_path: Path, assay: Callable[..., tuple[int, str, str]]
):
    (tmp_path / "traces.jsonl").write_text(content)
    status, _, complaint = assay(str(tmp_path / "traces.jsonl"))
    assert status == 2
    assert message in complaint
