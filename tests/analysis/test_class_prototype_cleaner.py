from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from assay.analysis.class_prototype_cleaner import (
    clean_labels,
    clean_posterior,
    fit_prototypes,
    prototype_loss,
    supervision,
)
from assay.errors import UserError

WORKED = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
PROTOTYPES = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)


def blobs(seed: int = 0, count: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of three classes, given labels of which 30 % are wrong, losses, and which labels are right."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(3).repeat(count)
    features = torch.randn(3 * count, 8, generator=generator) * 0.6
    features[torch.arange(3 * count), true] += 3
    wrong = torch.rand(3 * count, generator=generator) < 0.3
    labels = torch.where(wrong, (true + 1 + torch.randint(2, true.shape, generator=generator)) % 3, true)
    return features, labels, F.cross_entropy(features[:, :3], labels, reduction="none"), ~wrong


class TestLoss:
    def test_worked_numbers(self) -> None:
        """z = (1, 2), c = (1, 0), (0, −1), class 0 (its first) clean; then the same row as a wrong label."""
        scores = torch.sigmoid(WORKED @ PROTOTYPES.T)
        torch.testing.assert_close(scores, torch.tensor([[0.7311, 0.1192]], dtype=torch.float64), atol=1e-4, rtol=0)
        two, labels, bias = torch.cat([WORKED, WORKED]), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.float64)
        targets, weights = supervision(labels, torch.tensor([1.0, 0.5]), balanced=False)
        each = [prototype_loss(two, PROTOTYPES, bias, targets, weights * torch.eye(2)[k]).item() for k in (0, 1)]
        assert each == pytest.approx([0.3133, 0.1269], abs=1e-4)
        targets, weights = supervision(labels, torch.tensor([0.0, 0.5]), balanced=False)
        assert prototype_loss(two, PROTOTYPES, bias, targets, weights).item() == pytest.approx(1.3133, abs=1e-4)

    def test_masked_entries_have_no_gradient(self) -> None:
        z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        prototypes = PROTOTYPES.clone().requires_grad_()
        targets, weights = supervision(torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.0, 0.5]))
        prototype_loss(z, prototypes, torch.zeros(2, dtype=torch.float64), targets, weights).backward()
        assert z.grad is not None
        assert prototypes.grad is not None
        assert z.grad[0].eq(0).all()
        assert z.grad[2].eq(0).all()
        assert z.grad[1].ne(0).any()
        assert prototypes.grad[0].ne(0).any()
        assert prototypes.grad[1].eq(0).all()

    def test_duplicates_of_a_class_leave_the_balance_of_its_own_term(self) -> None:
        labels = torch.tensor([0, 0, 1, 1, 1])
        _, weights = supervision(labels, torch.ones(5))
        for k in (0, 1):
            assert weights[labels == k, k].sum() == pytest.approx(0.5)
            assert weights[labels != k, k].sum() == pytest.approx(0.5)
        again = torch.cat([labels, labels[labels == 0]])
        _, more = supervision(again, torch.ones(7))
        assert more[again == 0, 0].sum() == weights[labels == 0, 0].sum()
        torch.testing.assert_close(more[again == 1, 0], weights[labels == 1, 0])

    def test_trusted_labels_make_logistic_regressions_of_one_against_the_rest(self) -> None:
        """scikit-learn's, with balanced classes: its objective is C Σ wᵢ BCEᵢ + ½ ‖c‖², wᵢ = n / (2 n_class)."""
        pytest.importorskip("sklearn")
        from sklearn.linear_model import LogisticRegression

        features, labels, _, _ = blobs(count=60)
        z = features.double()
        targets, weights = supervision(labels, torch.ones(len(labels)))
        torch.testing.assert_close(targets, F.one_hot(labels).double())
        prototypes, bias = fit_prototypes(z, targets, weights, ridge=0.01)
        for k in range(3):
            peer = LogisticRegression(C=1 / (0.01 * len(z)), class_weight="balanced", tol=1e-10, max_iter=5000)
            peer.fit(z.numpy(), (labels == k).numpy())
            torch.testing.assert_close(prototypes[k], torch.from_numpy(peer.coef_[0]), atol=1e-4, rtol=1e-4)
            assert bias[k].item() == pytest.approx(peer.intercept_[0], abs=1e-3)


class TestMixture:
    def test_it_is_that_of_scikit_learn(self) -> None:
        pytest.importorskip("sklearn")
        from sklearn.mixture import GaussianMixture

        _, _, losses, _ = blobs()
        scaled = ((losses - losses.min()) / (losses.max() - losses.min())).double().numpy()[:, None]
        peer = GaussianMixture(2, max_iter=500, tol=1e-9, reg_covar=5e-4, means_init=[[0.0], [1.0]]).fit(scaled)
        expected = torch.from_numpy(peer.predict_proba(scaled))[:, int(peer.means_.argmin())]
        torch.testing.assert_close(clean_posterior(losses), expected, atol=0.01, rtol=0)

    def test_it_splits_by_one_threshold_for_all_classes(self) -> None:
        """Within the means of the components every smaller loss is at least as probably clean."""
        _, _, losses, _ = blobs()
        ordered = clean_posterior(losses)[losses.argsort()]
        half = ordered > 0.5
        assert (half[:-1].int() - half[1:].int()).abs().sum() == 1

    def test_classes_of_unequal_losses_defeat_it(self) -> None:
        """4,000 clean and 4,000 wrong labels in each of two classes, the second as hard when clean as the first when
        wrong: one mixture is right for 74.8 %, one for each class for 99.99 %."""
        generator = torch.Generator().manual_seed(0)
        parts = [torch.randn(4000, generator=generator) * 0.05 + mean for mean in (0.10, 0.45, 0.50, 0.90)]
        losses, right = torch.cat(parts), torch.tensor([True, False, True, False]).repeat_interleave(4000)
        one = ((clean_posterior(losses) > 0.5) == right).double()
        assert one.mean().item() == pytest.approx(0.748, abs=0.01)
        assert one[:8000].mean().item() == pytest.approx(0.5, abs=0.01)
        each = torch.cat([clean_posterior(losses[:8000]), clean_posterior(losses[8000:])]) > 0.5
        assert (each == right).double().mean().item() > 0.999


def test_names_of_classes_do_not_matter() -> None:
    features, labels, losses, _ = blobs()
    found = clean_labels(features, labels, losses)
    other = clean_labels(features, torch.tensor([2, 0, 1])[labels], losses)
    torch.testing.assert_close(other.probability, found.probability, atol=1e-5, rtol=0)
    shifted = clean_labels(7 * features + 3, labels, losses)
    torch.testing.assert_close(shifted.probability, found.probability, atol=1e-5, rtol=0)


def test_wrong_labels_are_found() -> None:
    features, labels, losses, right = blobs()
    found = clean_labels(features, labels, losses)
    assert (found.clean == right).double().mean() > 0.97
    assert found.probability[right].mean() > 0.9 > 0.1 > found.probability[~right].mean()


def test_bad_input_is_one_line() -> None:
    features, labels, losses, _ = blobs(count=4)
    for options in ({"low": 0.9}, {"high": 1.1}, {"ridge": 0.0}):
        with pytest.raises(UserError, match="0 ≤ low ≤ high ≤ 1 and ridge above 0"):
            clean_labels(features, labels, losses, **options)
    with pytest.raises(UserError, match="a row, a class and a loss per example"):
        clean_labels(features, labels[:3], losses)
    with pytest.raises(UserError, match="not finite"):
        clean_labels(features, labels, losses * math.inf)
    with pytest.raises(UserError, match="whole numbers from 0"):
        clean_labels(features, labels - 1, losses)
    with pytest.raises(UserError, match="at least 2 classes"):
        clean_labels(features, 0 * labels, losses)
    with pytest.raises(UserError, match="all losses are the same"):
        clean_labels(features, labels, torch.ones(12))
