from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.claims.experiments import experiments
from assay.claims.experiments.dynamic_lrp import area_between_curves, questions_about_things


def test_the_area_between_the_curves_by_hand() -> None:
    """A logit that is one pixel's value: replaced last it lasts all steps but one, replaced first it lasts none."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False))
    network[1].weight.data = torch.zeros(2, 9)
    network[1].weight.data[0, 4] = 1.0
    images = torch.zeros(1, 1, 3, 3)
    images[..., 1, 1] = 9.0
    score = torch.arange(9.0).view(1, 1, 3, 3)
    score[..., 1, 1] = 100.0
    assert area_between_curves(network, images, score) == pytest.approx((9 - 1) * 8 / 9)
    assert area_between_curves(network, images, -score) == pytest.approx(-(9 - 1) * 8 / 9)


def test_digits() -> None:
    pytest.importorskip("sklearn")
    found = experiments.build("dynamic-lrp-digits", {"steps": 40, "images": 20}, seed=3)
    assert set(found) == {"lrp.area", "gradient.area", "saliency.area", "random.area"}
    assert found["lrp.area"] > found["random.area"]
    assert abs(found["random.area"]) < found["lrp.area"]


def test_a_text_holds_its_answer_once_and_ends_before_it() -> None:
    for text, answer in questions_about_things(0, 20):
        assert text.count(answer) == 1
        name = text.rsplit("Answer: ", 1)[1].removesuffix(" keeps a")
        assert f"{name} keeps a{answer} in the" in text
    assert questions_about_things(0, 5) == questions_about_things(0, 5) != questions_about_things(1, 5)


def test_coverage_counts_what_has_no_rule() -> None:
    found = experiments.build("dynamic-lrp-coverage", {}, seed=2)
    assert found["operations"] * (1 - found["coverage"]) == pytest.approx(2)
    assert found["covered.error"] < 1e-6
