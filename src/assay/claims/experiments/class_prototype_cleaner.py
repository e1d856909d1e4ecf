"""Wrong labels of digits: found by class prototypes, by one mixture of losses, and by one mixture for each class."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from assay.analysis.class_prototype_cleaner import clean_labels, clean_posterior
from assay.claims.digits import digits, train_classifier
from assay.claims.experiments import experiments


@experiments.register("prototype-cleaning")
def prototype_cleaning(
    seed: int,
    *,
    noise: float = 0.4,
    uneven: float = 0.2,
    width: int = 128,
    steps: int = 100,
    lr: float = 1e-3,
) -> dict[str, float]:
    """A perceptron warms up on digits of which a share of ``noise`` ± ``uneven`` has another class's label.

    The share is the larger one in even classes. Of each way to tell wrong labels, ``.auc`` is the probability that
    a right label gets the higher score than a wrong one and ``.accuracy`` the share of labels that is judged rightly:
    ``prototypes``, ``mixture`` (one of all losses) and ``mixtures`` (one for each given class).
    """
    images, true, _, _ = digits(seed)
    x = images.flatten(1)
    labels = corrupted(true, noise=noise, uneven=uneven, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, head = nn.Sequential(nn.Linear(64, width), nn.ReLU()), nn.Linear(width, 10)
    model = nn.Sequential(body, head)
    train_classifier(model, x, labels, steps=steps, batch_size=64, lr=lr, seed=seed)
    with torch.no_grad():
        features = body.eval()(x)
        losses = F.cross_entropy(head(features), labels, reduction="none")
    found = clean_labels(features, labels, losses)
    each = torch.zeros(len(labels), dtype=torch.float64)
    for k in labels.unique():
        each[labels == k] = clean_posterior(losses[labels == k])
    scores = {"prototypes": found.probability, "mixture": found.posterior, "mixtures": each}
    right = labels == true
    measured: dict[str, float] = {}
    for name, score in scores.items():
        measured |= {
            f"{name}.auc": auc(score, right),
            f"{name}.accuracy": ((score > 0.5) == right).double().mean().item(),
        }
    return measured


def corrupted(true: Int[Tensor, " count"], *, noise: float, uneven: float, seed: int) -> Int[Tensor, " count"]:
    """Labels of which some are replaced by one of the other classes, each as likely."""
    generator = torch.Generator().manual_seed(seed)
    classes = int(true.max()) + 1
    share = noise + uneven * (1 - 2 * (true % 2))
    other = (true + torch.randint(1, classes, true.shape, generator=generator)) % classes
    return torch.where(torch.rand(true.shape, generator=generator) < share, other, true)


def auc(score: Float[Tensor, " count"], right: Bool[Tensor, " count"]) -> float:
    """The probability that a right label scores above a wrong one; a tie is half."""
    difference = score[right][:, None] - score[~right][None]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
