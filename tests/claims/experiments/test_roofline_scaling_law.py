from __future__ import annotations

import math

from assay.claims.experiments import experiments


def test_latencies_of_small_decoders() -> None:
    options = {"count": 4, "depth": 4, "hidden_size": 64, "prompt": 8, "new": 2, "seconds": 0.002}
    found = experiments.build("roofline-latency", options, seed=0)
    assert found.keys() == {"prefill.rank", "prefill.error", "decode.rank", "decode.error"}
    assert all(math.isfinite(value) for value in found.values())
    assert all(found[f"{name}.error"] >= 0 and abs(found[f"{name}.rank"]) <= 1 for name in ("prefill", "decode"))


def test_a_design_from_short_runs() -> None:
    options = {"count": 6, "rivals": 2, "depth": 3, "hidden_size": 32, "tokens": 64, "sequence_length": 16}
    options["eval_bytes"] = 512
    found = experiments.build("roofline-design", options, seed=0)
    assert found.keys() == {"sizes.rank", "parameters.rank", "rank", "gain"}
    assert abs(found["gain"]) < 1
    assert all(abs(found[name]) <= 1 + 1e-9 for name in ("sizes.rank", "parameters.rank", "rank"))
