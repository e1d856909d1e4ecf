import sysconfig
from pathlib import Path

import pytest

from assay.claims.experiments import experiments
from assay.claims.experiments.activation_sparsity import library


def test_the_text_is_the_standard_library_in_an_order_of_the_seed():
    first, second = library(0, 200_000), library(1, 200_000)
    assert len(first) == len(second) == 200_000
    texts = {path.read_bytes() for path in Path(sysconfig.get_paths()["stdlib"]).glob("*.py")}
    beginnings = [bytes(text[:100].tolist()) for text in (first, second)]
    assert beginnings[0] != beginnings[1]
    assert all(any(known.startswith(begin.rstrip(b"\n")[:80]) for known in texts) for begin in beginnings)


def test_a_short_run_trains_both_and_repeats():
    options = {"early": 4, "steps": 30, "hidden_size": 32, "depth": 1, "length": 32, "batch_size": 4}
    found = experiments["activation-sparsity"](0, **options)
    for activation in ("relu", "silu"):
        assert 0 < found[f"{activation}.late"] <= 1
        assert found[f"{activation}.trend"] == found[f"{activation}.late"] - found[f"{activation}.early"]
        assert found[f"{activation}.loss"] < 5.5
    assert found["relu.loss"] != pytest.approx(found["silu.loss"], abs=1e-6)
    assert found == experiments["activation-sparsity"](0, **options)
