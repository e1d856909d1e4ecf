from __future__ import annotations

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.federated_adversarial import WideReLU, opposites


def test_partners_are_unit_inputs_of_the_other_label_at_the_distance() -> None:
    clients = opposites(6, 5, 0.3, torch.Generator().manual_seed(0))
    assert [labels.tolist() for _, labels in clients] == [[1.0] * 3, [1.0] * 3, [-1.0] * 3, [-1.0] * 3]
    x, partners = (torch.cat([clients[i][0], clients[i + 1][0]]) for i in (0, 2))
    torch.testing.assert_close((x - partners).norm(dim=1), torch.full((6,), 0.3))
    torch.testing.assert_close(partners.norm(dim=1), torch.ones(6))


def test_only_the_inner_weights_are_trained() -> None:
    model = WideReLU(3, 7, torch.Generator().manual_seed(0))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["inner.weight"]
    x = torch.randn(4, 3)
    by_hand = sum(a * (x @ u + b).relu() for a, u, b in zip(model.signs, *model.inner.parameters(), strict=True))
    torch.testing.assert_close(model(x), by_hand / 7**0.5)


def test_clients_fit_together_what_is_apart() -> None:
    options = {"width": 300, "pairs": 4, "rounds": 40}
    found, again = (experiments.build("federated-fit", options, seed=0) for _ in range(2))
    assert found == again
    assert found["apart.best"] < 0.5 * found["apart.start"]
    assert found["overlapping.best"] > found["apart.best"]


def test_digits_learn_and_are_attacked() -> None:
    pytest.importorskip("sklearn")
    found = experiments.build("federated-digits", {"clients": 3, "rounds": 4, "hidden_size": 32}, seed=0)
    assert set(found) == {
        f"{arm}.{kind}" for arm in ("adversarial", "averaged", "central") for kind in ("clean", "robust")
    }
    for arm in ("adversarial", "averaged", "central"):
        assert found[f"{arm}.robust"] < found[f"{arm}.clean"]
    assert found["central.clean"] > 0.5
