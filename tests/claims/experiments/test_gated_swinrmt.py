from __future__ import annotations

import pytest

from assay.claims.experiments import experiments
from assay.claims.experiments.gated_swinrmt import ARMS
from assay.errors import UserError
from assay.models.vision import networks

pytest.importorskip("sklearn")


def test_arms_have_equally_many_parameters() -> None:
    shape = {"widths": (24, 32), "depths": (2, 1), "num_heads": (4, 4)}
    sizes = {
        arm: sum(
            p.numel()
            for name, p in networks.build(
                "gated-swinrmt", {**shape, **options}, image_size=32, channels=1, num_classes=10
            ).named_parameters()
            if p.ndim == 2
        )
        for arm, options in ARMS.items()
    }
    assert len(set(sizes.values())) == 1


def test_reports_the_arms_that_are_asked_for() -> None:
    options = {"arms": ("rmt", "swat"), "steps": 1, "width": 8, "depth": 1}
    found = experiments.build("swinrmt-digits", options, seed=0)
    assert list(found) == ["rmt", "swat"]
    with pytest.raises(UserError, match="unknown arm 'swta'; nearest: swat"):
        experiments.build("swinrmt-digits", {"arms": ("swta",)}, seed=0)
