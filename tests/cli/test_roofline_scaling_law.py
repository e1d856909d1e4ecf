from __future__ import annotations

import json

import pytest


def test_operators_add_up_to_the_latency(assay, monkeypatch):
    from assay.analysis import roofline

    machine = roofline.Machine(1e11, ((1e6, 2e10),), layer=1e-4, step=1e-3)
    monkeypatch.setattr(roofline, "measure_machine", lambda **options: machine)
    arguments = ["--set", "model.depth=2", "--set", "model.hidden_size=64", "--prompt", "32"]
    status, printed, _ = assay("analyse", "roofline-scaling-law", *arguments, "--json")
    found = json.loads(printed)
    assert status == 0
    for name in ("prompt", "token"):
        parts = sum(one["ms"] for one in found["operators"] if one["pass"] == name)
        assert parts + 1.2 == pytest.approx(found[f"{name}_ms"])
    bound = {(one["pass"], one["operator"]): one["bound"] for one in found["operators"]}
    assert (bound["prompt", "mlp"], bound["token", "mlp"]) == ("computing", "memory")
    assert "1.2 ms of each" in assay("analyse", "roofline-scaling-law", *arguments)[1]


def test_a_network_of_unknown_cost_is_refused(assay):
    status, _, errors = assay("analyse", "roofline-scaling-law", "--set", "model.mixer=relu-attention")
    assert status == 2
    assert "latency is known for mixer 'softmax'" in errors
    assert errors.count("\n") == 1
