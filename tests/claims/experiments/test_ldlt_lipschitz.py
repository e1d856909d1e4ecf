from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from assay.claims.experiments import experiments
from assay.claims.experiments.ldlt_lipschitz import Contraction, SLLLayer, measured

pytest.importorskip("sklearn")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(layer: nn.Module, size: float) -> nn.Module:
    layer = layer.double()
    for index, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(size * draw(*parameter.shape, seed=index))
    return layer


@pytest.mark.parametrize("width", [3, 8, 20])
@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
def test_sll_layer_stretches_nothing(width: int, size: float) -> None:
    """Its certificate is 2 T − WᵀW ≥ 0 with W features by hidden units, and its slopes are I − 2 W T⁻¹ J Wᵀ."""
    layer = randomized(SLLLayer(8, width), size)
    x, other = draw(500, 8, seed=50), draw(500, 8, seed=51)
    assert ((layer(x) - layer(other)).norm(dim=1) / (x - other).norm(dim=1)).max() <= 1 + 1e-9


def test_sll_layer_worked_number() -> None:
    """One unit with w = (3, 4), b = 1: T = 25, and x = (1, 0) becomes x − 2/25 · relu(3 + 1) w."""
    layer = SLLLayer(2, 1)
    layer.inner.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    nn.init.ones_(layer.inner.bias)
    torch.testing.assert_close(layer(torch.tensor([[1.0, 0.0]])), torch.tensor([[1 - 0.96, -1.28]]))


def test_last_map_stretches_nothing() -> None:
    layer = Contraction(8, 3)
    layer.weight.data *= 100
    slopes = torch.func.jacrev(layer)(torch.zeros(8))
    assert 0.9 < torch.linalg.matrix_norm(slopes, 2) < 1


def test_lead_that_certifies() -> None:
    logits = torch.tensor([[1.0, 0.2, 0.0], [1.0, 0.4, 0.0], [0.0, 0.1, 0.3]])
    labels = torch.tensor([0, 0, 1])
    assert measured(nn.Identity(), logits, labels, 0.5) == pytest.approx((2 / 3, 1 / 3))
    assert measured(nn.Identity(), logits, labels, 0.79 / math.sqrt(2))[1] == pytest.approx(1 / 3)
    assert measured(nn.Identity(), logits, labels, 0.81 / math.sqrt(2))[1] == 0


def test_certified_images_stand_an_attack() -> None:
    """No shift of a certified input by ε changes its class, along the gradient of the lead or anywhere."""
    model = nn.Sequential(randomized(SLLLayer(6, 6), 1.0), Contraction(6, 3).double())
    x = draw(400, 6, seed=9)
    labels = model(x).argmax(1)
    for epsilon in (0.05, 0.2):
        certified = torch.tensor(
            [
                measured(model, image[None], label[None], epsilon)[1] == 1
                for image, label in zip(x, labels, strict=True)
            ]
        )
        assert certified.any()
        shift = draw(400, 6, seed=10)
        for _ in range(5):
            moved = (x + epsilon * shift / shift.norm(dim=1, keepdim=True)).requires_grad_()
            logits = model(moved)
            right = logits.gather(1, labels[:, None]).squeeze(1)
            lead = right - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
            assert (lead[certified] > 0).all()
            (shift,) = torch.autograd.grad(-lead.sum(), moved)


def test_reports_bounds_and_shares() -> None:
    found = experiments.build("ldlt-tightness", {"steps": 2, "width": 8, "climbs": 3}, seed=0)
    assert found["violations"] == 0
    assert 0 < found["attained"] <= found["certified"] < found["product"]
    shares = experiments.build("ldlt-digits", {"steps": 2, "lrs": (1e-2,)}, seed=0)
    assert list(shares) == ["ldlt.accuracy", "ldlt.certified", "sll.accuracy", "sll.certified"]
