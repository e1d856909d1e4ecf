"""How many full-batch steps separate two classes: normalised logistic gradient descent against the plain one.

On the data that are the worst case of gradient descent, and on digits: one class against the others, with a share of
one in a hundred or of one half. Tyurin, 2024, arXiv:2412.08424.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from assay.claims.digits import digits
from assay.claims.experiments import experiments
from assay.optim.normalized_logistic_gd import Method, Separation, separate, worst_case

RATES = (0.1, 1, 10, 100)
"""Step sizes, those of the paper."""
METHODS: dict[str, Method] = {"normalized": "normalized-logistic-gd", "logistic": "logistic-gd"}


@experiments.register("normalized-logistic-worst-case")
def normalized_logistic_worst_case(seed: int, *, n: int = 1000) -> dict[str, float]:
    """Steps until all samples are on their side: ``normalized_0.1`` to ``normalized_100``, and ``logistic_100``."""
    data = worst_case(n)
    found = {f"normalized_{rate:g}": steps(separate(*data, lr=rate)) for rate in RATES}
    return found | {"logistic_100": steps(separate(*data, method="logistic-gd", lr=100))}


@experiments.register("normalized-logistic-digits")
def normalized_logistic_digits(seed: int, *, imbalance: int = 100, max_steps: int = 20_000) -> dict[str, float]:
    """``DATA.METHOD_RATE``: steps until all samples are on their side; ``DATA.METHOD``: those of the best rate.

    ``imbalanced`` has one image of the digit ``seed`` mod 10 for ``imbalance`` images of other digits, ``balanced``
    as many of either. A constant feature is the bias. ``DATA.peak_RATE`` is the largest logistic loss on the way of
    gradient descent, in nats.
    """
    images, labels, _, _ = digits(seed)
    own = labels == seed % 10
    digit, others = images[own].flatten(1), images[~own].flatten(1)
    few = round(len(others) / imbalance)
    found: dict[str, float] = {}
    for name, a, b in (("imbalanced", digit[:few], others), ("balanced", digit, others[: len(digit)])):
        inputs = F.pad(torch.cat([a, b]), (0, 1), value=1.0)
        sides = torch.cat([torch.ones(len(a)), -torch.ones(len(b))])
        for says, method in METHODS.items():
            for rate in RATES:
                result = separate(inputs, sides, method=method, lr=rate, max_steps=max_steps)
                found[f"{name}.{says}_{rate:g}"] = steps(result)
                if says == "logistic":
                    found[f"{name}.peak_{rate:g}"] = max(result.losses)
            taken = [found[f"{name}.{says}_{rate:g}"] for rate in RATES]
            found[f"{name}.{says}"] = min((count for count in taken if math.isfinite(count)), default=math.nan)
    return found


def steps(result: Separation) -> float:
    return float(result.steps) if result.separated else math.nan
