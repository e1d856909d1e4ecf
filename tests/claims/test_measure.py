"""Measuring claims in every way, on runs that take a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.catalog.evidence import Evidence, evidence
from assay.catalog.records import Claim
from assay.claims import measure as module
from assay.claims.benchmarks import benchmarks
from assay.claims.experiments import experiments
from assay.claims.measure import build_way, measure, rule
from assay.claims.properties import properties
from assay.errors import AssayError, UserError
from assay.models import Decoder

calls: list[Any] = []


@experiments.register("test-experiment")
def experiment(seed: int, *, slope: float = 1.0) -> dict[str, float]:
    calls.append(seed)
    return {"line": 1 + slope * seed, "constant": 3.0}


@properties.register("test-property")
def embedding_norm(model: Decoder, ids: torch.Tensor, *, power: int = 1) -> dict[str, float]:
    calls.append(tuple(ids.shape))
    return {"norm": model.embedding.weight.norm().item() ** power, "training": float(model.training)}


@benchmarks.register("test-benchmark")
def contestants() -> dict[str, Callable[[], object]]:
    small, large = torch.randn(8, 8), torch.randn(512, 512)
    return {"small": lambda: small @ small, "large": lambda: large @ large}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered here is not known to other processes."""
    monkeypatch.setattr("assay.claims.ways.experiment.available_cores", lambda: 1)
    calls.clear()


@pytest.fixture
def run(corpus: Path) -> dict[str, Any]:
    return {
        "model": {"depth": 2, "hidden_size": 32, "num_heads": 2},
        "data": {"corpus": f"text:{corpus}", "sequence_length": 32, "batch_size": 4, "eval_bytes": 2048},
        "training": {"evaluations": 2},
    }


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Claim]:
    """A claim ``paper/NAME`` with this ``measure`` table, which ``measure`` then finds."""
    known: dict[str, Claim] = {}

    def make(name: str = "claim", scales: dict[str, Any] | None = None, **table: Any) -> Claim:
        one = {"id": f"paper/{name}", "says": "so", "published": "there", "measure": table}
        known[name] = Claim.parse(one if scales is None else {**one, "scales": scales})
        return known[name]

    def select(names: list[str], area: str | None) -> list[Claim]:
        return [one for one in known.values() if not names or one.id in names]

    monkeypatch.setattr(module, "select", select)
    return make


def measured(tmp_path: Path, *names: str, **options: Any) -> dict[str, Any]:
    found = measure(names, out=tmp_path / "evidence", work=tmp_path / "work", **options)
    return {claim.id: measurement for claim, measurement in found}


class TestExperiments:
    def test_values_by_seed_and_the_verdict(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        claim(experiment={"name": "test-experiment", "slope": 0.01}, expect={"line / constant": "< 0.5"}, seeds=3)
        result = measured(tmp_path)["paper/claim"]
        assert result.values == {"line": {0: 1.0, 1: 1.01, 2: 1.02}, "constant": {0: 3.0, 1: 3.0, 2: 3.0}}
        assert result.verdict == "supported"
        assert result.outcomes[0].mean == pytest.approx(1.01 / 3, rel=1e-3)
        assert result.budget == {"seeds": 3}

    def test_seeds_that_are_done_are_not_done_again(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        claim(experiment="test-experiment", expect={"line": "> 0"}, seeds=2)
        measured(tmp_path)
        measured(tmp_path, seeds=4)
        assert calls == [0, 1, 2, 3]

    def test_other_options_are_another_experiment(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        for slope in (1.0, 2.0):
            claim(experiment={"name": "test-experiment", "slope": slope}, expect={"line": "> 0"}, seeds=2)
            assert measured(tmp_path)["paper/claim"].values["line"][1] == 1 + slope

    def test_an_exact_one_needs_one_seed(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        claim(experiment="test-experiment", expect={"constant": "3 .. 3"}, seeds=1, exact=True)
        assert measured(tmp_path)["paper/claim"].verdict == "supported"


class TestComparisons:
    def test_arms_are_tuned_alike_and_compared(
        self, claim: Callable[..., Claim], run: dict[str, Any], tmp_path: Path
    ) -> None:
        arms = ["baseline", "peri-ln"]
        claim(compare=arms, expect="lower", tokens=1024, seeds=2, tune={"lr": [0.5, 1]}, run=run)
        result = measured(tmp_path)["paper/claim"]
        assert set(result.values) == set(arms)
        assert [o.quantity for o in result.outcomes] == ["peri-ln - baseline"]
        comparison = json.loads(
            next((tmp_path / "work" / "cpu" / "comparisons").glob("*/comparison.json")).read_text()
        )
        for arm in comparison["arms"]:
            assert result.values[arm["name"]] == {r["seed"]: r["value"] for r in arm["runs"]}
            assert len(arm["tuned"]["candidates"]) == 2
        assert result.details["arms"]["peri-ln"]["curve"][-1][0] == 1024
        assert result.outcomes[0].mean == pytest.approx(comparison["arms"][1]["compared"]["mean"])

    def test_claims_with_equal_settings_share_their_runs(
        self, claim: Callable[..., Claim], run: dict[str, Any], tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {"expect": "lower", "tokens": 512, "seeds": 1, "tune": {}, "run": run}
        claim("one", compare=["baseline", "peri-ln"], **settings)
        claim("two", compare=["baseline", "seednorm"], **settings)
        measured(tmp_path)
        assert len(list((tmp_path / "work" / "cpu" / "comparisons").glob("*/runs/*"))) == 3


class TestProperties:
    def test_quantities_of_every_arm_and_seed_once(
        self, claim: Callable[..., Claim], run: dict[str, Any], tmp_path: Path
    ) -> None:
        claim(
            property={"name": "test-property", "power": 2},
            arms=["baseline", "peri-ln"],
            expect={"peri-ln.norm / baseline.norm": "> 0", "baseline.training": "0 .. 0"},
            tokens=512,
            seeds=2,
            run=run,
            text=96,
        )
        result = measured(tmp_path)["paper/claim"]
        assert set(result.values) == {f"{arm}.{q}" for arm in ("baseline", "peri-ln") for q in ("norm", "training")}
        assert result.verdict == "supported"
        assert calls == [(3, 32)] * 4
        measured(tmp_path)
        assert len(calls) == 4

    def test_fresh_models_are_those_that_training_starts_from(
        self, claim: Callable[..., Claim], run: dict[str, Any], tmp_path: Path
    ) -> None:
        settings = {"arms": ["baseline"], "expect": {"baseline.norm": "> 0"}, "tokens": 512, "seeds": 2, "run": run}
        claim("fresh", property="test-property", trained=False, **settings)
        claim("trained", property="test-property", **settings)
        found = measured(tmp_path)
        fresh, trained = (found[f"paper/{name}"].values["baseline.norm"] for name in ("fresh", "trained"))
        for seed in (0, 1):
            assert fresh[seed] == pytest.approx(trained[seed], rel=0.1)
            assert fresh[seed] != trained[seed]


class TestBenchmarks:
    def test_contestants_take_turns(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        claim(benchmark="test-benchmark", expect={"small / large": "< 1"}, rounds=4)
        result = measured(tmp_path)["paper/claim"]
        assert {name: list(values) for name, values in result.values.items()} == {
            "small": [0, 1, 2, 3],
            "large": [0, 1, 2, 3],
        }
        assert result.verdict == "supported"
        assert result.details["calls per round"]["small"] > result.details["calls per round"]["large"]


class TestEvidence:
    def test_it_says_what_it_was_measured_with_and_by_which_rule(
        self, claim: Callable[..., Claim], tmp_path: Path
    ) -> None:
        one = claim(experiment="test-experiment", expect={"line": "> 0"}, seeds=2)
        result = measured(tmp_path)["paper/claim"]
        kept = evidence("paper/claim", tmp_path / "evidence")
        assert kept is not None
        assert kept.scales["cpu"] == result
        assert result.measure == rule(one, "cpu") == one.measure
        assert result.versions["torch"] == torch.__version__
        assert result.hardware["cores"] >= 1
        assert result.seconds > 0

    def test_scales_stand_side_by_side(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        claim(experiment="test-experiment", expect={"line": "> 0"}, scales={"cpu": {"seeds": 2}, "gpu": {"seeds": 3}})
        measured(tmp_path)
        measured(tmp_path, scale="gpu")
        kept = Evidence.load(tmp_path / "evidence", "paper/claim")
        assert kept is not None
        assert {scale: len(found.values["line"]) for scale, found in kept.scales.items()} == {"cpu": 2, "gpu": 3}

    def test_damaged_evidence_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "paper").mkdir()
        (tmp_path / "paper" / "claim.json").write_text("{}")
        with pytest.raises(AssayError, match="is no evidence"):
            evidence("paper/claim", tmp_path)


class TestMistakes:
    def test_a_claim_without_a_way_cannot_be_measured(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        claim()
        with pytest.raises(UserError, match="'paper/claim' cannot be measured here"):
            measured(tmp_path)

    def test_nor_at_a_scale_that_it_is_not_for(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        claim(experiment="test-experiment", expect={"line": "> 0"}, scales={"gpu": {}})
        with pytest.raises(UserError, match="is not for scale 'cpu', only for gpu"):
            measured(tmp_path)

    def test_among_several_those_are_passed_over(self, claim: Callable[..., Claim], tmp_path: Path) -> None:
        claim("open")
        claim("gpu", experiment="test-experiment", expect={"line": "> 0"}, scales={"gpu": {}})
        claim("good", experiment="test-experiment", expect={"line": "> 0"}, seeds=1)
        assert list(measured(tmp_path)) == ["paper/good"]

    def test_an_expectation_of_what_is_not_measured_leaves_no_evidence(
        self, claim: Callable[..., Claim], tmp_path: Path
    ) -> None:
        claim(experiment="test-experiment", expect={"lines": "> 0"}, seeds=1)
        with pytest.raises(UserError, match="'lines' is no measured quantity"):
            measured(tmp_path)
        assert not (tmp_path / "evidence").exists()

    @pytest.mark.parametrize(
        ("table", "reason"),
        [
            ({"expect": {}}, "has to name one way of: benchmark, compare, experiment, property"),
            ({"experiment": "x", "benchmark": "y"}, "has to name one way"),
            ({"experiment": "test-experimen", "expect": {}}, "nearest: test-experiment"),
            ({"experiment": "test-experiment", "expect": {}, "sedes": 3}, "no option 'sedes'; nearest: seeds"),
        ],
    )
    def test_a_wrong_record_is_named(self, claim: Callable[..., Claim], table: dict[str, Any], reason: str) -> None:
        wrong = claim(**table)
        with pytest.raises(AssayError, match=f"'paper/claim'.*{reason}"):
            build_way(wrong, rule(wrong, "cpu"))
