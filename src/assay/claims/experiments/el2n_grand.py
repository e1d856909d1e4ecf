"""Digits scored early in training: what pruning by the scores costs, and where wrong labels rank.

Paul, Ganguli, Dziugaite, 2021, arXiv:2107.07075.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.analysis.el2n_grand import el2n, grand, keep, mean_score
from assay.claims.digits import accuracy, digits, train_classifier
from assay.claims.experiments import experiments


@experiments.register("el2n-grand-digits")
def el2n_grand_digits(
    seed: int,
    *,
    runs: int = 5,
    early: int = 40,
    steps: int = 400,
    hidden_size: int = 64,
    batch_size: int = 32,
    flipped: float = 0.1,
    lr: float = 3e-3,
) -> dict[str, float]:
    """Accuracies on the test images, after training on all or on part of the others, for equally many steps.

    ``full``; ``hardest.P``, without the P % of lowest EL2N; ``easiest.30``, without the 30 % of highest;
    ``random.P``; each the mean over ``runs`` starts that did not score. ``auc.el2n`` and ``auc.grand`` are how often
    a wrong label scores above a right one where ``flipped`` of the labels are wrong, ``auc.single`` the mean of EL2N
    of single runs.
    """
    images, labels, test_images, test_labels = digits(seed)
    train, test = images.flatten(1), test_images.flatten(1)

    def fit(start: int, kept: Int[Tensor, " kept"], wanted: Int[Tensor, " count"], length: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start)
            model = nn.Sequential(nn.Linear(64, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 10))
        train_classifier(model, train[kept], wanted[kept], steps=length, batch_size=batch_size, lr=lr, seed=start)
        return model.eval()

    everything = torch.arange(len(labels))
    scoring = [seed * 1000 + run for run in range(runs)]
    models = [fit(start, everything, labels, early) for start in scoring]
    with torch.no_grad():
        scores = mean_score([el2n(model(train), labels) for model in models])
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    count = len(labels)
    subsets = {"full": everything, "easiest.30": keep(-scores, 0.7)}
    for percent in (30, 50):
        subsets[f"hardest.{percent}"] = keep(scores, 1 - percent / 100)
        subsets[f"random.{percent}"] = shuffled[: round(count * (1 - percent / 100))]
    found = {
        name: sum(
            accuracy(fit(seed * 1000 + 500 + run, kept, labels, steps), test, test_labels) for run in range(runs)
        )
        / runs
        for name, kept in subsets.items()
    }
    wrong = torch.rand(count, generator=generator) < flipped
    noisy = torch.where(wrong, (labels + torch.randint(1, 10, (count,), generator=generator)) % 10, labels)
    models = [fit(start, everything, noisy, early) for start in scoring]
    with torch.no_grad():
        single = [el2n(model(train), noisy) for model in models]
    gradients = [grand(model, train, noisy) for model in models]
    return found | {
        "auc.el2n": area(mean_score(single), wrong),
        "auc.grand": area(mean_score(gradients), wrong),
        "auc.single": sum(area(one, wrong) for one in single) / runs,
    }


def area(scores: Float[Tensor, " count"], positive: Tensor) -> float:
    """How often a positive scores above a negative; equals count half."""
    above = scores[positive][:, None] - scores[~positive]
    return ((above > 0).double() + 0.5 * (above == 0).double()).mean().item()
