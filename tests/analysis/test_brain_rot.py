"""Junk, control, mixtures of equal size, and Hedges' g."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.analysis.brain_rot import Post, count_tokens, effect_size, hedges_g, kind, mixture, read_posts
from assay.cli import main
from assay.errors import UserError

JUNK, CONTROL = [60.0, 62, 64, 66], [70.0, 71, 73, 74]


@pytest.mark.parametrize(
    ("length", "popularity", "expected"),
    [
        (29, 501, "junk"), (30, 501, None), (29, 500, None), (5, 0, None), (101, 0, "control"), (100, 0, None),
        (101, 1, None), (29, None, "junk"), (101, None, "control"), (60, None, None), (101, 600, None),
    ],
)  # fmt: skip
def test_all_bounds_are_strict(length, popularity, expected):
    assert kind(Post("", length, popularity)) == expected


def posts() -> list[Post]:
    random = np.random.default_rng(0)
    short = [Post(f"s{n}", int(random.integers(3, 30)), 900) for n in range(400)]
    long = [Post(f"l{n}", int(random.integers(101, 300)), 0) for n in range(60)]
    return [*short, Post("neither", 50, 3), *long]


@given(ratio=st.sampled_from([0, 0.2, 0.5, 0.8, 1]), tokens=st.integers(1, 5000), seed=st.integers(0, 50))
def test_a_mixture_has_its_tokens_and_its_junk_within_a_post(ratio, tokens, seed):
    mixed = mixture(posts(), ratio=ratio, tokens=tokens, seed=seed)
    sizes = {name: [post.length for post in mixed if kind(post) == name] for name in ("junk", "control", None)}
    assert not sizes[None]
    for name, share in (("junk", ratio), ("control", 1 - ratio)):
        wanted = round(share * tokens)
        assert wanted <= sum(sizes[name]) < wanted + (max(sizes[name]) if sizes[name] else 1)
    assert len({post.text for post in mixed}) == len(mixed)


def test_doses_are_nested_and_the_seed_decides():
    half, most = (mixture(posts(), ratio=ratio, tokens=4000, seed=3) for ratio in (0.5, 0.8))
    assert {post.text for post in half if kind(post) == "junk"} < {post.text for post in most}
    assert mixture(posts(), ratio=0.5, tokens=4000, seed=3) == half
    assert mixture(posts(), ratio=0.5, tokens=4000, seed=4) != half


def test_too_few_posts_and_no_share():
    with pytest.raises(UserError, match=r"100000 tokens of junk are asked for, and there are \d+; give more posts"):
        mixture(posts(), ratio=1, tokens=100_000, seed=0)
    with pytest.raises(UserError, match=r"ratio=1.5 is no share of junk"):
        mixture(posts(), ratio=1.5, tokens=10, seed=0)


class TestHedgesG:
    def test_worked_numbers(self):
        assert hedges_g(JUNK, CONTROL) == pytest.approx(-3.499932, abs=1e-6)
        assert hedges_g(JUNK, CONTROL) / (1 - 3 / 23) == pytest.approx(-4.024922, abs=1e-6)

    @given(st.floats(-100, 100), st.floats(0.01, 100))
    def test_units_do_not_matter_and_sides_turn_the_sign(self, shift, scale):
        moved = [[scale * x + shift for x in arm] for arm in (JUNK, CONTROL)]
        assert hedges_g(*moved) == pytest.approx(hedges_g(JUNK, CONTROL), rel=1e-6)
        assert hedges_g(CONTROL, JUNK) == -hedges_g(JUNK, CONTROL)

    def test_it_is_the_t_statistic_of_scipy_in_other_units(self):
        from scipy.stats import ttest_ind

        random = np.random.default_rng(1)
        one, two = random.normal(0, 1, 5), random.normal(1, 2, 9)
        d = ttest_ind(one, two).statistic * np.sqrt(1 / 5 + 1 / 9)
        assert hedges_g(one, two) == pytest.approx((1 - 3 / (4 * 12 - 1)) * d)

    def test_the_interval_holds_g_and_narrows(self):
        found = effect_size(JUNK, CONTROL)
        assert found.low < found.g < found.high < 0
        assert found == effect_size(JUNK, CONTROL)
        random = np.random.default_rng(0)
        many = effect_size(random.normal(0, 1, 400), random.normal(0.5, 1, 400))
        assert many.low < -0.5 < many.high
        # the normal approximation of the error of g is √(2 / n), and 90 % lie within 1.645 of it
        assert many.high - many.low == pytest.approx(2 * 1.645 * np.sqrt(2 / 400), rel=0.15)

    @pytest.mark.parametrize(
        ("junk", "message"), [([1.0], "1 and 2 values; .* two models or more"), ([5.0, 5.0], "some that differ")]
    )
    def test_too_little_to_tell(self, junk, message):
        with pytest.raises(UserError, match=message):
            hedges_g(junk, [3.0, 3.0])


class TestReading:
    def test_reactions_are_summed(self, tmp_path: Path):
        lines = [{"text": "a b, c", "likes": 3, "quotes": 2}, {"text": "x", "popularity": 7}, {"text": "y"}]
        (tmp_path / "posts.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
        assert read_posts(tmp_path / "posts.jsonl") == [Post("a b, c", 4, 5), Post("x", 1, 7), Post("y", 1, None)]
        assert count_tokens("don't stop…") == 5

    @pytest.mark.parametrize(
        "line", ["[]", '{"likes": 1}', '{"text": "a", "likes": "many"}', '{"text": "a", "likes": -1}']
    )
    def test_lines_that_are_no_posts(self, line: str, tmp_path: Path):
        (tmp_path / "posts.jsonl").write_text(line)
        with pytest.raises(UserError, match="line 1: an object like"):
            read_posts(tmp_path / "posts.jsonl")


@pytest.fixture
def assay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["assay", "analyse", "brain-rot", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return (int(left.value.code or 0), *capsys.readouterr())

    return run


def test_the_command_counts_and_writes_a_corpus(tmp_path: Path, assay: Callable[..., tuple[int, str, str]]):
    given = [{"text": f"short {n}", "popularity": 900} for n in range(50)]
    given += [{"text": f"long {n} " + "word " * 120, "popularity": 0} for n in range(5)]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in given))
    arguments = [
        str(tmp_path / "posts.jsonl"),
        "--ratio",
        "0.2",
        "--tokens",
        "300",
        "--out",
        str(tmp_path / "mix.jsonl"),
    ]
    status, shown, _ = assay(*arguments, "--json")
    assert status == 0
    found = json.loads(shown)
    assert found["junk"] == {"posts": 50, "tokens": 100}
    assert found["mixture: junk"] == {"posts": 30, "tokens": 60}
    assert found["mixture: control"] == {"posts": 2, "tokens": 244}
    texts = [json.loads(line)["text"] for line in (tmp_path / "mix.jsonl").read_text().splitlines()]
    assert len(texts) == 32
    assert set(texts) < {post["text"] for post in given}
    assert "mixture: control" in assay(*arguments)[1]
    assert assay(*arguments, "--ratio", "1")[0] == 2
