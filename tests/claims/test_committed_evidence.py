"""Every claim can be measured as its record says, and every committed verdict follows from its values."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.catalog.claims import claims
from assay.catalog.evidence import Evidence, shipped_folder
from assay.catalog.records import Claim
from assay.claims.judging import judge, overall
from assay.claims.measure import build_way, rule

KNOWN = {claim.id: claim for claim in claims()}
MEASURABLE = [(claim, scale) for claim in KNOWN.values() if claim.measure for scale in claim.scales]
COMMITTED = sorted(shipped_folder().rglob("*.json"))


@pytest.mark.parametrize(("claim", "scale"), MEASURABLE, ids=[f"{claim.id}-{scale}" for claim, scale in MEASURABLE])
def test_its_rule_is_one_that_its_way_takes(claim: Claim, scale: str) -> None:
    way = build_way(claim, rule(claim, scale))
    assert way.expect


@pytest.mark.parametrize("path", COMMITTED, ids=[str(path.relative_to(shipped_folder())) for path in COMMITTED])
def test_the_verdict_follows_from_the_values_by_the_record(path: Path) -> None:
    name = str(path.relative_to(shipped_folder()).with_suffix(""))
    evidence = Evidence.load(shipped_folder(), name)
    assert evidence is not None
    assert evidence.id == name
    for scale, measurement in evidence.scales.items():
        claim = KNOWN[name]
        assert measurement.measure == rule(claim, scale), "the record changed after the measurement: measure again"
        way = build_way(claim, measurement.measure)
        outcomes = judge(measurement.values, way.expect, exact=way.exact)
        assert [(o.quantity, o.region, o.verdict) for o in outcomes] == [
            (o.quantity, o.region, o.verdict) for o in measurement.outcomes
        ]
        for again, kept in zip(outcomes, measurement.outcomes, strict=True):
            assert [again.mean, again.low, again.high] == pytest.approx([kept.mean, kept.low, kept.high], nan_ok=True)
        assert overall(outcomes) == measurement.verdict
