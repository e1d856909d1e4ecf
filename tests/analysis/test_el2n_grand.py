"""EL2N and GraNd: worked numbers, closed forms, gradients one at a time, and pruning."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.analysis.el2n_grand import el2n, el2n_windows, grand, keep, last_layer_grand, mean_score
from assay.cli import main
from assay.errors import UserError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestEL2N:
    def test_worked_numbers(self) -> None:
        logits = torch.tensor([[2.0, 0, 0], [2.0, 0, 0]], dtype=torch.float64)
        found = el2n(logits, torch.tensor([0, 1]))
        torch.testing.assert_close(found, torch.tensor([0.260888, 1.195416], dtype=torch.float64), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("classes", [2, 5, 100])
    def test_ends_and_the_uniform_model(self, classes: int) -> None:
        labels = torch.tensor([1])
        assert el2n(torch.zeros(1, classes), labels).item() == pytest.approx(math.sqrt(1 - 1 / classes))
        sure = torch.zeros(1, classes)
        sure[0, 1] = 1000
        assert el2n(sure, labels).item() == 0
        assert el2n(sure, torch.tensor([0])).item() == pytest.approx(math.sqrt(2))

    def test_of_two_classes(self) -> None:
        logits, labels = drawn(50, 2), torch.arange(50) % 2
        right = logits.softmax(-1)[torch.arange(50), labels]
        torch.testing.assert_close(el2n(logits, labels), math.sqrt(2) * (1 - right))

    def test_a_shift_of_the_logits_does_not_matter(self) -> None:
        logits, labels = drawn(20, 7), torch.arange(20) % 7
        torch.testing.assert_close(el2n(logits, labels), el2n(logits + drawn(20, 1, seed=1), labels))

    def test_windows_are_means_over_their_targets(self) -> None:
        logits, targets = drawn(3, 6, 11), torch.arange(18).view(3, 6) % 11
        targets[0, 2:] = -100
        found = el2n_windows(logits, targets)
        assert found[0].item() == pytest.approx(el2n(logits[0, :2], targets[0, :2]).mean().item())
        assert found[1].item() == pytest.approx(el2n(logits[1], targets[1]).mean().item())
        targets[0] = -100
        with pytest.raises(UserError, match="a window has no target"):
            el2n_windows(logits, targets)

    def test_labels_that_are_no_classes(self) -> None:
        with pytest.raises(UserError, match="labels between 0 and 3; 3 classes are 0 and up"):
            el2n(torch.zeros(2, 3), torch.tensor([0, 3]))
        with pytest.raises(UserError, match=r"labels of shape \[3\] for logits of shape \[2, 3\]"):
            el2n(torch.zeros(2, 3), torch.tensor([0, 1, 2]))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, 5)]
    model = nn.Sequential(*layers).double()
    model(drawn(30, 1, 8, 8, seed=3))  # running statistics
    return model


class TestGraNd:
    def test_of_a_linear_softmax_it_is_a_product(self) -> None:
        model = nn.Linear(2, 3).double()
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.0, 1], [0, 0], [0, 0]]))
            model.bias.zero_()
        x, y = torch.tensor([[1.0, 2]], dtype=torch.float64), torch.tensor([0])
        assert grand(model, x, y).item() == pytest.approx(0.639042, abs=1e-6)
        plain = nn.Linear(2, 3, bias=False).double()
        plain.load_state_dict({"weight": model.weight.detach()})
        assert grand(plain, x, y).item() == pytest.approx(0.260888 * math.sqrt(5), abs=1e-6)

    def test_it_is_the_norm_of_each_gradient_taken_alone(self) -> None:
        model, inputs, labels = network(), drawn(12, 1, 8, 8), torch.arange(12) % 5
        found = grand(model, inputs, labels, batch_size=5)
        model.eval()
        for x, y, score in zip(inputs, labels, found, strict=True):
            model.zero_grad()
            F.cross_entropy(model(x[None]), y[None]).backward()
            norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
            torch.testing.assert_close(score, norm)

    def test_neither_batches_nor_neighbours_nor_the_mode_matter(self) -> None:
        model, inputs, labels = network(), drawn(12, 1, 8, 8), torch.arange(12) % 5
        model.train()
        found = grand(model, inputs, labels)
        assert model.training
        torch.testing.assert_close(grand(model, inputs, labels, batch_size=1), found)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(grand(model, inputs[order], labels[order]), found[order])

    def test_frozen_parameters_do_not_count(self) -> None:
        """With all but the last layer frozen it is the score that needs no backward pass."""
        model, inputs, labels = network().eval(), drawn(12, 1, 8, 8), torch.arange(12) % 5
        whole = grand(model, inputs, labels)
        model[:5].requires_grad_(False)
        features = model[:5](inputs)
        last = last_layer_grand(model[5](features), labels, features)
        torch.testing.assert_close(grand(model, inputs, labels), last.detach())
        assert (whole > last).all()


class TestKeep:
    scores = torch.tensor([0.5, 0.1, 0.9, 0.5, 0.7])

    def test_the_highest_stay_in_place(self) -> None:
        assert keep(self.scores, 0.4).tolist() == [2, 4]
        assert keep(self.scores, 0.6).tolist() == [0, 2, 4]
        assert keep(self.scores, 1).tolist() == [0, 1, 2, 3, 4]

    def test_the_very_highest_are_passed_over(self) -> None:
        assert keep(self.scores, 0.4, drop_highest=0.2).tolist() == [0, 4]
        assert keep(self.scores, 0.8, drop_highest=0.2).tolist() == [0, 1, 3, 4]

    @pytest.mark.parametrize(("fraction", "dropped"), [(0, 0), (1.1, 0), (0.5, -0.1), (0.8, 0.3)])
    def test_shares_that_cannot_be(self, fraction: float, dropped: float) -> None:
        with pytest.raises(UserError, match="both are shares of the examples, together at most 1"):
            keep(self.scores, fraction, drop_highest=dropped)

    def test_the_mean_is_over_runs_of_the_same_examples(self) -> None:
        runs = [torch.tensor([1.0, 2]), torch.tensor([3.0, 6])]
        assert mean_score(runs).tolist() == [2, 4]
        with pytest.raises(UserError, match="runs with 2, 3 examples; all must score the same ones"):
            mean_score([torch.zeros(2), torch.zeros(3)])


class TestCommand:
    @pytest.fixture
    def assay(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., tuple[int, str, str]]:
        def run(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["assay", "analyse", "el2n-grand", *arguments])
            with pytest.raises(SystemExit) as left:
                main()
            return (int(left.value.code or 0), *capsys.readouterr())

        return run

    def test_it_scores_keeps_and_writes(self, tmp_path: Path, assay: Callable[..., tuple[int, str, str]]) -> None:
        logits = [drawn(6, 3, seed=seed) for seed in (0, 1)]
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        for number, table in enumerate(logits):
            np.save(tmp_path / f"{number}.npy", table.numpy())
        (tmp_path / "labels.txt").write_text("0\n1\n2\n0\n1\n2\n")
        arguments = [str(tmp_path / "0.npy"), str(tmp_path / "1.npy"), "--labels", str(tmp_path / "labels.txt")]
        arguments += ["--keep", "0.5", "--out", str(tmp_path / "kept.txt")]
        status, shown, _ = assay(*arguments, "--json")
        assert status == 0
        document = json.loads(shown)
        expected = (el2n(logits[0], labels) + el2n(logits[1], labels)) / 2
        assert document["scores"] == pytest.approx(expected.tolist())
        assert document["kept"] == sorted(expected.argsort(descending=True)[:3].tolist())
        assert (tmp_path / "kept.txt").read_text() == "".join(f"{at}\n" for at in document["kept"])
        assert "3 of 6 examples kept" in assay(*arguments)[1]

    def test_labels_that_are_none(self, tmp_path: Path, assay: Callable[..., tuple[int, str, str]]) -> None:
        np.save(tmp_path / "0.npy", np.zeros((2, 3)))
        (tmp_path / "labels.txt").write_text("cat\ndog\n")
        status, _, complaint = assay(str(tmp_path / "0.npy"), "--labels", str(tmp_path / "labels.txt"))
        assert status == 2
        assert "labels are whole numbers from 0 on, one a line" in complaint
