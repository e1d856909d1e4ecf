import json

import pytest

from assay.catalog.claims import claims
from assay.catalog.evidence import Evidence
from assay.catalog.records import builtin
from assay.claims.experiments import experiments


@experiments.register("test-command")
def experiment(seed: int, *, slope: float = 0.0) -> dict[str, float]:
    return {"found": 1 + slope * seed}


@pytest.fixture
def claim(monkeypatch):
    """seednorm's first claim, measured by an experiment that takes no time."""
    monkeypatch.setattr("assay.claims.ways.experiment.available_cores", lambda: 1)
    one = builtin().papers["seednorm"].claims[0]
    rule = {"experiment": "test-command", "expect": {"found": "> 0"}, "seeds": 2}
    monkeypatch.setitem(
        builtin().papers,
        "seednorm",
        builtin().papers["seednorm"].model_copy(update={"claims": (one.model_copy(update={"measure": rule}),)}),
    )
    return one.id


def test_the_list_has_one_line_per_claim(assay):
    status, out, err = assay("claims", "list")
    assert (status, err) == (0, "")
    heading, *lines = out.splitlines()
    assert heading.split() == ["claim", "cpu", "gpu", "says"]
    for one, line in zip(claims(), lines, strict=True):
        assert line.startswith(one.id + " ")
        assert line.endswith(one.says)


def test_a_run_writes_evidence_that_list_and_show_read(assay, claim, tmp_path):
    out = str(tmp_path / "evidence")
    status, printed, err = assay("claims", "run", claim, "--out", out, "--work", str(tmp_path / "work"), "--quiet")
    assert (status, err) == (0, "")
    assert printed == f"{claim}: supported\n  found: 1 (1 to 1), expected > 0: supported\n"
    assert Evidence.load(tmp_path / "evidence", claim).scales["cpu"].verdict == "supported"
    listed = json.loads(assay("claims", "list", "--area", "norm", "--evidence", out, "--json")[1])
    (found,) = [one for one in listed if one["id"] == claim]
    assert found["evidence"]["cpu"]["values"] == {"found": {"0": 1.0, "1": 1.0}}
    shown = assay("claims", "show", claim, "--evidence", out)[1]
    assert "cpu: supported (2 seeds, 20" in shown
    assert "    found: 1 (1 to 1), expected > 0: supported" in shown
    assert f"gpu: open; assay claims run {claim} --scale gpu" in shown


def test_seeds_of_the_call_come_first(assay, claim, tmp_path):
    out = tmp_path / "evidence"
    assay("claims", "run", claim, "--seeds", "4", "--out", str(out), "--work", str(tmp_path / "work"), "--quiet")
    assert set(Evidence.load(out, claim).scales["cpu"].values["found"]) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run"], "error: nothing to measure: name claims or papers, or an area with --area\n"),
        (["run", "seednorm", "--area", "norm"], "error: name claims or papers, or an area with --area, not both\n"),
        (["run", "seednrm"], "error: unknown claim 'seednrm'; nearest: seednorm"),
        (["show", "seednorm/los"], "error: unknown claim 'seednorm/los'; nearest: seednorm/loss"),
        (["list", "--area", "nrm"], "error: unknown area 'nrm'; nearest: norm"),
        (["list", "--evidence", "/no/such"], "error: no folder of evidence at '/no/such'"),
        (["run", "seednorm", "--scale", "tpu"], "error: Invalid value for '--scale'"),
        (["show", "allora"], "error: 'allora' has no claim in the catalogue yet\n"),
    ],
)
def test_mistakes_are_one_line(assay, arguments, reason):
    status, out, err = assay("claims", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(reason)
    assert err.count("\n") == 1
