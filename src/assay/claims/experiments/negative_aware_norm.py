"""Negative-aware norm on small images: unknown ones, the classifier in the norm, and labels that mean nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.analysis.negative_aware_norm import hidden_logits, last_features, scores, separation
from assay.claims.digits import accuracy, digits, train_classifier
from assay.claims.experiments import experiments
from assay.errors import UserError
from assay.models.vision import networks

BATCH = 256


@experiments.register("negative-aware-norm")
def negative_aware_norm(
    seed: int, *, known: int = 6, steps: int = 200, lr: float = 1e-2, depth: int = 8
) -> dict[str, float]:
    """A ResNet, trained on the digits below ``known``, tells its test images from unknown ones.

    ``SCORE.near``, the AUROC against the other digits, ``SCORE.far``, against patches of photographs, and ``SCORE``,
    their mean, for ``nan``, ``l1``, ``sparsity`` and ``logit``, the largest logit. Then, over the test images,
    ``share``: the mean of the hidden classifier's largest logit over the norm, ``correlation``: Spearman's of the
    two. ``accuracy`` is the network's.
    """
    images, labels, test_images, test_labels = digits(seed)
    old, inside = labels < known, test_labels < known
    model = trained(images[old], labels[old], num_classes=known, steps=steps, lr=lr, depth=depth, seed=seed)
    sets = {
        "known": test_images[inside],
        "near": torch.cat((images[~old], test_images[~inside])),
        "far": photograph_patches(),
    }
    features = {name: last_features(model, one.unsqueeze(1).split(BATCH)) for name, one in sets.items()}
    weight, bias = (model.get_parameter(f"classifier.{name}").detach() for name in ("weight", "bias"))
    values = {name: scores(one) | {"logit": (one @ weight.T + bias).amax(-1)} for name, one in features.items()}
    found: dict[str, float] = {}
    for score in ("nan", "l1", "sparsity", "logit"):
        for name in ("near", "far"):
            found[f"{score}.{name}"] = separation(values["known"][score], values[name][score]).auroc
        found[score] = (found[f"{score}.near"] + found[f"{score}.far"]) / 2
    hidden, norm = hidden_logits(weight, features["known"]).amax(-1), values["known"]["l1"]
    model.eval()
    return found | {
        "share": (hidden / norm).mean().item(),
        "correlation": float(spearmanr(hidden, norm).statistic),
        "accuracy": accuracy(model, test_images[inside].unsqueeze(1), test_labels[inside]),
    }


@experiments.register("feature-norm-labels")
def feature_norm_labels(
    seed: int, *, known: int = 6, steps: int = 800, lr: float = 1e-2, depth: int = 8
) -> dict[str, float]:
    """The norm's AUROC against unknown digits, after training with three kinds of labels.

    ``LABELS.train`` for the images of the training, ``LABELS.test`` for others of the same digits, where ``LABELS``
    is ``semantic``, ``random`` (drawn once for each image) or ``single`` (one for all). ``random.accuracy`` is how
    many of the random labels were learned.
    """
    images, labels, test_images, test_labels = digits(seed)
    old, inside = labels < known, test_labels < known
    drawn = torch.randint(known, labels.shape, generator=torch.Generator().manual_seed(seed))
    unknown = torch.cat((images[~old], test_images[~inside]))
    sets = {"train": images[old], "test": test_images[inside], "unknown": unknown}
    found: dict[str, float] = {}
    for kind, given in (("semantic", labels), ("random", drawn), ("single", torch.zeros_like(labels))):
        model = trained(images[old], given[old], num_classes=known, steps=steps, lr=lr, depth=depth, seed=seed)
        norms = {
            name: last_features(model, one.unsqueeze(1).split(BATCH)).abs().sum(-1) for name, one in sets.items()
        }
        found |= {f"{kind}.{name}": separation(norms[name], norms["unknown"]).auroc for name in ("train", "test")}
        if kind == "random":
            model.eval()
            found["random.accuracy"] = accuracy(model, images[old].unsqueeze(1), given[old])
    return found


def trained(
    images: Float[Tensor, "count 8 8"],
    labels: Int[Tensor, " count"],
    *,
    num_classes: int,
    steps: int,
    lr: float,
    depth: int,
    seed: int,
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = {"widths": (8, 16, 32), "depth": depth}
        model = networks.build("resnet", options, image_size=8, channels=1, num_classes=num_classes)
    train_classifier(model, images.unsqueeze(1), labels, steps=steps, batch_size=64, lr=lr, seed=seed)
    return model


def photograph_patches() -> Float[Tensor, "count 8 8"]:
    """scikit-learn's two photographs in grey, a quarter as wide and high, cut into 8 × 8 pixels, scaled as the digits
    are. Raises ``UserError`` without scikit-learn or Pillow.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images

        photographs = load_sample_images().images
    except ImportError:
        raise UserError("the photographs need scikit-learn and Pillow: pip install 'assay[claims]' pillow") from None
    pixels = torch.from_numpy(load_digits().images)
    patches = []
    for photograph in photographs:
        grey = torch.tensor(photograph, dtype=torch.float64).mean(-1) * (16 / 255)
        small = nn.functional.avg_pool2d(grey[None], 4)[0]
        patches.append(small.unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1))
    return ((torch.cat(patches) - pixels.mean()) / pixels.std(correction=0)).float()
