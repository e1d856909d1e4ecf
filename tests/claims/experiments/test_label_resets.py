from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.claims.experiments import experiments, label_resets
from assay.claims.experiments.label_resets import Classifier

pytest.importorskip("sklearn")

QUICK: dict[str, Any] = {"images": 20, "resets": 4, "steps": 5, "batch_size": 10, "hidden_size": 8, "compared": 2}


def run(**options: Any) -> dict[str, float]:
    return experiments.build("label-resets", {**QUICK, **options}, seed=0)


def test_norms_stand_before_the_non_linearities_in_the_place_of_biases() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    plain, normed = Classifier(5, normed=False), Classifier(5, normed=True)
    first, second = plain.hidden
    torch.testing.assert_close(plain(x), plain.head(F.relu(second(F.relu(first(x))))))
    expected = x
    for linear in normed.hidden:
        expected = F.relu(F.layer_norm(expected @ linear.weight.T, (5,)))
    torch.testing.assert_close(normed(x), normed.head(expected))
    assert [linear.bias is None for linear in normed.hidden] == [True, True]


def test_first_and_last_are_means_over_the_tasks_at_both_ends() -> None:
    found = run(resets=4, compared=4)
    for arm in ("plain", "layer-norm", "normalize-and-project"):
        assert found[f"{arm}.first"] == found[f"{arm}.last"]
        assert found[f"{arm}.rise"] == 0
    found = run()
    assert found == run()
    for arm in ("plain", "layer-norm", "normalize-and-project"):
        assert found[f"{arm}.rise"] == pytest.approx(found[f"{arm}.last"] - found[f"{arm}.first"])
        assert found[f"{arm}.rise"] != 0


def test_labels_are_drawn_anew_for_each_task_and_alike_for_each_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    cross_entropy = F.cross_entropy

    def note(logits: Tensor, labels: Tensor) -> Tensor:
        if len(labels) == 20:
            seen.append(tuple(labels.tolist()))
        return cross_entropy(logits, labels)

    monkeypatch.setattr(label_resets.F, "cross_entropy", note)
    run()
    assert seen[:4] == seen[4:8] == seen[8:]
    assert len(set(seen)) == 4


def test_only_the_projected_arm_keeps_its_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[tuple[Classifier, list[float]]] = []

    class Noted(Classifier):
        def __init__(self, hidden_size: int, *, normed: bool) -> None:
            super().__init__(hidden_size, normed=normed)
            models.append((self, norms(self)))

    def norms(model: nn.Module) -> list[float]:
        return [linear.weight.norm().item() for linear in model.hidden]

    monkeypatch.setattr(label_resets, "Classifier", Noted)
    run(lr=0.05)
    plain, normed, projected = models
    assert normed[1] == projected[1]
    assert norms(projected[0]) == pytest.approx(projected[1], rel=1e-5)
    for model, starts in (plain, normed):
        assert all(now > 1.02 * start for now, start in zip(norms(model), starts, strict=True))
