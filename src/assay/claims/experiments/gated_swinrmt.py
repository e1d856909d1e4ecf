"""Gated-SwinRMT and RMT on the digits, with equally many parameters."""

from __future__ import annotations

from typing import Any

import torch

from assay.claims.digits import accuracy, digits, train_classifier
from assay.claims.experiments import experiments
from assay.errors import unknown
from assay.models.vision import networks

UNGATED = {"gate": False, "mlp_ratio": 2.5}
"""What a gate has in parameters, the MLP has in its place."""

ARMS: dict[str, dict[str, Any]] = {
    "rmt": {"window": 8, **UNGATED},
    "retention-ungated": UNGATED,
    "retention": {"mlp_ratio": 2.0},
    "swat-ungated": {"variant": "swat", **UNGATED},
    "swat": {"variant": "swat", "mlp_ratio": 2.0},
}


@experiments.register("swinrmt-digits")
def swinrmt_digits(
    seed: int,
    *,
    arms: tuple[str, ...] = ("rmt", "retention", "swat"),
    steps: int = 80,
    lr: float = 5e-3,
    width: int = 24,
    depth: int = 2,
    window: int = 4,
) -> dict[str, float]:
    """The test accuracy of each of the ``arms``.

    ``retention`` and ``swat`` have gates and windows, ``retention-ungated`` and ``swat-ungated`` only windows, and
    ``rmt``, whose attention spans the image, neither. All have the same number of parameters.
    """
    images, labels, test_images, test_labels = digits(seed)
    shape = {"widths": (width,), "depths": (depth,), "num_heads": (4,), "patch_size": 1, "features": 64}
    found = {}
    for arm in arms:
        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            options = {**shape, "window": window, **ARMS[arm]}
            model = networks.build("gated-swinrmt", options, image_size=8, channels=1, num_classes=10)
        train_classifier(model, images.unsqueeze(1), labels, steps=steps, batch_size=64, lr=lr, seed=seed)
        found[arm] = accuracy(model.eval(), test_images.unsqueeze(1), test_labels)
    return found
