"""The generated gallery, its figures, and the links of the whole site."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from assay.catalog.evidence import Measurement
from assay.catalog.techniques import techniques
from assay.claims.judging import judge

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    import gallery

    import figures

    return type("Hooks", (), {"figures": figures, "gallery": gallery})


def measurement(values: dict[str, dict[int, float | None]], expect: dict[str, str]) -> Measurement:
    return Measurement(
        verdict="supported",
        outcomes=judge(values, expect),
        values=values,
        measure={},
        exact=False,
        budget={"seeds": 2},
        details={},
        hardware={},
        versions={},
        commit=None,
        created=datetime.now(UTC),
        seconds=1.0,
    )


class TestPages:
    def test_every_technique_has_one_that_the_index_links(self, hooks: Any) -> None:
        pages = hooks.gallery.pages()
        for paper in techniques():
            assert f"gallery/{paper.slug}.md" in pages
            assert f"[{paper.slug}]({paper.slug}.md)" in pages["gallery/index.md"]

    def test_it_has_formula_use_and_claims(self, hooks: Any) -> None:
        page = hooks.gallery.pages()["gallery/seednorm.md"]
        assert "    y = (γ + α · tanh⟨x, β⟩) ⊙ x / rms(x)" in page
        assert "$ assay train --set model.norm=seednorm" in page
        assert "### seednorm/loss" in page
        assert "2.922 to 2.900" in page

    def test_every_patch_leads_to_a_definition(self, hooks: Any) -> None:
        slots = ("model.norm", "model.placement", "model.mixer", "model.residual", "model.mlp", "optimizer", "loss")
        for paper in techniques():
            if paper.patch and any(field in slots for field in paper.patch):
                assert hooks.gallery.definitions(paper), paper.slug


class TestFigures:
    def test_everything_stands_where_its_value_is(self, hooks: Any) -> None:
        values: dict[str, dict[int, float | None]] = {"a": {0: 1.0, 1: 2.0, 2: 3.0}}
        found = measurement(values, {"a": "> 0"})
        svg = hooks.figures.outcome_figure(found.outcomes[0], found)
        seeds = [float(x) for x in re.findall(r'class="seed" cx="([\d.]+)"', svg)]
        assert seeds[1] - seeds[0] == pytest.approx(seeds[2] - seeds[1], abs=0.2)
        one = seeds[1] - seeds[0]
        low, high = map(float, re.search(r'class="interval" x1="([\d.]+)" x2="([\d.]+)"', svg).groups())  # type: ignore[union-attr]
        outcome = found.outcomes[0]
        assert (high - low) / one == pytest.approx(outcome.high - outcome.low, abs=0.02)  # type: ignore[operator]
        assert (low + high) / 2 == pytest.approx(seeds[1], abs=0.2)
        region = float(re.search(r'class="region" x="([\d.]+)"', svg)[1])  # type: ignore[index]
        assert (seeds[0] - region) / one == pytest.approx(1.0, abs=0.02)

    def test_ticks_are_round_and_inside(self, hooks: Any) -> None:
        assert hooks.figures.ticks(-0.31, 0.22) == pytest.approx([-0.3, -0.2, -0.1, 0.0, 0.1, 0.2])
        for low, high in [(0.97, 1.02), (3e-5, 9e-5), (-1200, 4000)]:
            found = hooks.figures.ticks(low, high)
            assert 3 <= len(found) <= 8
            assert all(low <= tick <= high for tick in found)

    def test_names_are_escaped(self, hooks: Any) -> None:
        found = measurement({'<b> & "x"': {0: 1.0, 1: 2.0}}, {'<b> & "x"': "> 0"})
        svg = hooks.figures.outcome_figure(found.outcomes[0], found)
        assert "<b>" not in svg
        assert 'aria-label="&lt;b&gt; &amp; &quot;x&quot;: mean' in svg

    def test_nothing_finite_is_no_figure(self, hooks: Any) -> None:
        found = measurement({"a": {0: None, 1: None}}, {"a": "> 0"})
        assert hooks.figures.outcome_figure(found.outcomes[0], found) == ""


def test_the_site_builds_and_no_link_or_anchor_is_broken(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "gallery" / "seednorm.html").exists()
