"""How a paper's claims stand by the evidence, and that a diagnosis names those first that held best."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from assay.catalog import evidence as module
from assay.catalog.evidence import Evidence, Measurement, Scale, Standing, Verdict, standing
from assay.diagnostics import Finding
from assay.diagnostics.diagnosis import describe, treatments


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(module, "shipped_folder", lambda: tmp_path)
    standing.cache_clear()
    yield tmp_path
    standing.cache_clear()


def write(folder: Path, claim: str, **verdicts: Verdict) -> None:
    def measurement(verdict: Verdict) -> Measurement:
        return Measurement(
            verdict=verdict,
            outcomes=[],
            values={},
            measure={},
            exact=False,
            budget={},
            details={},
            hardware={},
            versions={},
            commit=None,
            created=datetime.datetime.now(datetime.UTC),
            seconds=1.0,
        )

    scales: dict[Scale, Measurement] = {
        scale: measurement(verdicts[scale]) for scale in ("cpu", "gpu") if scale in verdicts
    }
    Evidence(id=claim, scales=scales).save(folder)


def test_a_claim_counts_once_and_every_scale_must_support_it(folder: Path) -> None:
    write(folder, "a/one", cpu="supported")
    write(folder, "a/two", cpu="supported", gpu="not supported")
    write(folder, "a/three", cpu="inconclusive at this scale")
    assert standing("a/one", "a/two", "a/three", "a/four") == Standing(measured=3, supported=1)


@pytest.mark.parametrize(
    ("measured", "supported", "says"),
    [
        (0, 0, "no claim measured here yet"),
        (1, 1, "1 of 1 claim held"),
        (3, 0, "0 of 3 claims held"),
    ],
)
def test_it_reads_as_a_sentence(measured: int, supported: int, says: str) -> None:
    assert str(Standing(measured, supported)) == says


def test_what_was_never_measured_stands_between_what_held_and_what_did_not() -> None:
    ranks = [Standing(*pair).rank for pair in ((4, 4), (1, 1), (3, 2), (0, 0), (3, 1), (1, 0), (4, 0))]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == len(ranks)


def test_treatments_come_by_what_was_measured(folder: Path) -> None:
    finding = Finding("attention-sinks", "attention-sink", "says", 0.9, 0.3, "a paper", "means")
    first, *others = [treatment.paper for treatment in treatments(finding)]
    assert first.slug == min(first.slug, *(paper.slug for paper in others))
    last = others[-1]
    write(folder, last.claims[0].id, cpu="supported")
    write(folder, first.claims[0].id, cpu="not supported")
    standing.cache_clear()
    found = treatments(finding)
    assert [found[0].paper, found[-1].paper] == [last, first]
    assert describe(finding)["techniques"][0] == {
        "name": last.slug,
        "command": found[0].command,
        "claims": dataclasses.asdict(Standing(1, 1)),
    }
