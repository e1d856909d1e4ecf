"""Negative-aware norm: tells unknown inputs from known ones by the mean size of the active units.

    NAN(a) = ‖a‖₁ / ‖a‖₀,    ‖a‖₁ = Σ |a_i|,    ‖a‖₀ = #{i : a_i > 0}        0 where no unit is active

a is the feature vector that a classifier's last linear map reads, after its rectifier. NAN is higher for known
inputs; it needs neither labels nor a threshold. The norm alone is the largest logit of a classifier whose weights are
the signs of the last map's W, if these align with a: for every class k

    0 ≤ ‖a‖₁ − Σ_i sign(W_ki) a_i ≤ ‖a‖_∞ Σ_i |sign(a_i) − sign(W_ki)|        sign(0) = −1, a_i ≥ 0

It does not see the units that a class keeps silent; 1 / ‖a‖₀ does. Joined to a distance from known features that is
larger for unknown inputs, the score is distance / NAN.

Park, Chai, Yoon, Teoh, 2023, arXiv:2310.05316.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from assay.errors import UserError


@dataclass(frozen=True)
class Separation:
    """How well a score, high for known inputs, tells them from unknown ones.

    ``auroc`` is the share of pairs in which the known input has the higher score, ties counting half; ``fpr95`` is
    the share of unknown inputs at or above ``threshold``, the highest value that 95 % of the known ones reach.
    """

    auroc: float
    fpr95: float
    threshold: float


@dataclass(frozen=True)
class NegativeAwareNorms:
    """``nan``, and its two factors by themselves: ``l1`` is ‖a‖₁ and ``sparsity`` 1 / ‖a‖₀, 0 without active units.

    ``inside_active`` and ``outside_active`` are the mean shares of units above 0. Where both are 1, NAN is ‖a‖₁
    divided by the number of units and knows nothing more than the norm.
    """

    nan: Separation
    l1: Separation
    sparsity: Separation
    inside_active: float
    outside_active: float


def negative_aware_norms(
    inside: Float[Tensor, "known hidden"], outside: Float[Tensor, "unknown hidden"]
) -> NegativeAwareNorms:
    """Compare the scores of known inputs' features with those of unknown ones.

    Raises ``UserError`` if the two have different numbers of features, or one has no rows.
    """
    if inside.shape[1] != outside.shape[1]:
        raise UserError(
            f"features of {inside.shape[1]} and of {outside.shape[1]} units do not compare; both must be one layer's"
        )
    known, unknown = scores(inside), scores(outside)
    found = {name: separation(known[name], unknown[name]) for name in known}
    active = [(features > 0).double().mean().item() for features in (inside, outside)]
    return NegativeAwareNorms(**found, inside_active=active[0], outside_active=active[1])


def negative_aware_norm(features: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
    """NAN(a) of each feature vector."""
    active = (features > 0).sum(-1)
    return torch.where(active > 0, features.abs().sum(-1) / active.clamp(min=1), 0)


def scores(features: Float[Tensor, "*batch hidden"]) -> dict[str, Float[Tensor, "*batch"]]:
    """``nan``, ``l1`` and ``sparsity`` of each feature vector."""
    active = (features > 0).sum(-1)
    return {
        "nan": negative_aware_norm(features),
        "l1": features.abs().sum(-1),
        "sparsity": torch.where(active > 0, 1 / active.clamp(min=1), 0).to(features.dtype),
    }


def joined(distance: Float[Tensor, "*batch"], features: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
    """distance / NAN: higher for unknown inputs, as ``distance`` is; infinite where no unit is active."""
    return distance / negative_aware_norm(features)


def hidden_logits(
    weight: Float[Tensor, "classes hidden"], features: Float[Tensor, "*batch hidden"]
) -> Float[Tensor, "*batch classes"]:
    """Σ_i sign(W_ki) a_i with sign(0) = −1: the logits whose largest one the norm stands for."""
    signs = torch.where(weight > 0, 1.0, -1.0).to(features.dtype)
    return features @ signs.T


def activation_entropy(features: Float[Tensor, "batch hidden"]) -> Float[Tensor, " hidden"]:
    """−p ln p − (1 − p) ln(1 − p) of each unit, in nats; p is the share of rows in which it is above 0.

    Training to tell classes apart raises it; while it stays near 0, the norm tells nothing.
    """
    share = (features > 0).to(features.dtype).mean(0)
    return -torch.special.xlogy(share, share) - torch.special.xlogy(1 - share, 1 - share)


def separation(inside: Float[Tensor, " known"], outside: Float[Tensor, " unknown"]) -> Separation:
    """Raises ``UserError`` if there are no inputs of one kind."""
    if not len(inside) or not len(outside):
        raise UserError("known and unknown inputs must be at least one each")
    ordered = outside.sort().values
    below = torch.searchsorted(ordered, inside, side="left") + torch.searchsorted(ordered, inside, side="right")
    kept = math.ceil(0.95 * len(inside))
    threshold = inside.sort(descending=True).values[kept - 1]
    return Separation(
        auroc=below.double().mean().item() / (2 * len(outside)),
        fpr95=(outside >= threshold).double().mean().item(),
        threshold=threshold.item(),
    )


@torch.no_grad()
def last_features(model: nn.Module, batches: Iterable[Tensor]) -> Float[Tensor, "count hidden"]:
    """What ``model``'s last linear map reads while it evaluates ``batches``; dimensions between are averaged.

    The last map is the ``nn.Linear`` that is called last. The model's mode is restored afterwards.
    Raises ``UserError`` if the model calls none.
    """
    read: list[Tensor] = []
    found: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            read.clear()
            model(batch)
            if not read:
                raise UserError("the model calls no nn.Linear; its features must be read where its rectifier ends")
            last = read[-1]
            found.append(last.flatten(1, -2).mean(1) if last.dim() > 2 else last)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return torch.cat(found)


def read_features(path: Path) -> Float[Tensor, "count hidden"]:
    """A table of features from a ``.npy``, ``.csv`` or ``.safetensors`` file: a row for each input.

    A .csv file has numbers only, a .safetensors file one tensor. Raises ``UserError`` for anything else, and for rows
    that are not finite.
    """
    name = repr(str(path))
    readers = {".npy": _numpy, ".csv": _text, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise UserError(f"{name}: features are read from {', '.join(readers)} files")
    try:
        table = readers[path.suffix](path)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from None
    except (ValueError, SafetensorError):
        raise UserError(f"{name} is no {path.suffix} file of numbers; it must hold one table of them") from None
    if table.dim() != 2 or not table.numel():
        raise UserError(f"{name} has the shape {list(table.shape)}; it must be [inputs, units]")
    if not table.isfinite().all():
        raise UserError(f"{name} has values that are not finite; every feature must be a number")
    return table


def _numpy(path: Path) -> Tensor:
    with path.open("rb") as file:
        table = np.lib.format.read_array(file, allow_pickle=False)
    if table.dtype.kind not in "fiub":
        raise ValueError
    return torch.from_numpy(table.astype(np.float64))


def _text(path: Path) -> Tensor:
    rows = [[float(value) for value in row.split(",")] for row in path.read_text("utf-8").splitlines() if row.strip()]
    return torch.tensor(rows, dtype=torch.float64)


def _safetensors(path: Path) -> Tensor:
    tensors = load_file(path)
    if len(tensors) != 1:
        raise ValueError
    return next(iter(tensors.values())).double()
