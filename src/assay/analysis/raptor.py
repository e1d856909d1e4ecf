"""RAPTOR: a logistic probe per layer with a tuned ridge, and steering along its weight.

    z = (x − mean) / scale,  statistics of the training part
    (u, c) = argmin ½ ‖u‖² + C Σᵢ log(1 + exp(−sᵢ (u·zᵢ + c))),  sᵢ = ±1,  ridge λ = 1 / C
    logit(x) = w·x + b,  w = u / scale,  b = c − w·mean,  concept vector w / ‖w‖

x is the residual stream behind a layer at the last token of a text. C is the smallest of 100 values from 1e-4 to 1e2
with the best validation accuracy; the probe is then fitted again to training and validation parts together, in the
coordinates of the training part. Steering shifts the last token's state along the concept vector until the probe
gives the probability that was asked for. That shift is the one that fits the folded probe; the authors' script
combines the unit vector with the bias of the folded one, which lands elsewhere.

Gao, Zhu, Zeng, Zhao, Wang, Ruan, Ding, 2026, arXiv:2602.00158.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from assay.analysis.layers import at_layers
from assay.data.tokenizers import Tokenizer
from assay.errors import UserError
from assay.files import disk_errors

STRENGTHS = tuple(10 ** (-4 + 6 * step / 99) for step in range(100))
"""The values of C that are tried, ascending."""

_FEWEST = 5


@dataclasses.dataclass(frozen=True)
class Probe:
    """``logit(x) = weight·x + bias`` for states x behind ``layer``, counted from 0.

    ``ridge`` is λ = 1 / C; ``validation`` and ``test`` are accuracies, of the probe that was chosen by validation and
    of the one fitted again.
    """

    layer: int
    weight: Float[Tensor, " hidden"]
    bias: float
    ridge: float
    validation: float
    test: float

    @property
    def direction(self) -> Float[Tensor, " hidden"]:
        """The concept vector, of norm 1."""
        return self.weight / self.weight.norm()

    def logits(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        return states.to(self.weight) @ self.weight + self.bias


@dataclasses.dataclass(frozen=True)
class Raptor:
    """The probes by layer, and how many texts each part had."""

    probes: tuple[Probe, ...]
    train: int
    validation: int
    test: int

    @property
    def best(self) -> Probe:
        """The first with the best validation accuracy."""
        return max(self.probes, key=lambda probe: probe.validation)

    def above(self, accuracy: float) -> list[Probe]:
        """Those whose validation accuracy is above ``accuracy``."""
        return [probe for probe in self.probes if probe.validation > accuracy]

    def save(self, path: str | Path) -> None:
        """Write ``direction``, ``weight`` [layers, hidden] and ``bias``, ``ridge`` [layers] as safetensors."""
        columns = {
            "direction": torch.stack([probe.direction for probe in self.probes]),
            "weight": torch.stack([probe.weight for probe in self.probes]),
            "bias": torch.tensor([probe.bias for probe in self.probes]),
            "ridge": torch.tensor([probe.ridge for probe in self.probes]),
        }
        with disk_errors(Path(path)):
            save_file({name: tensor.float().contiguous() for name, tensor in columns.items()}, path)


def raptor(
    model: PreTrainedModel, tokenizer: Tokenizer, positive: Sequence[str], negative: Sequence[str], *, seed: int = 0
) -> Raptor:
    """Probes for what tells ``positive`` texts from ``negative`` ones, for each layer of a causal language model.

    ``seed`` decides which texts are for training, validation and test. Raises ``UserError`` for fewer than 5 texts of
    a kind, a text without tokens or longer than the model reads, or layers without one state per token.
    """
    if min(len(positive), len(negative)) < _FEWEST:
        found = f"{len(positive)} positive and {len(negative)} negative"
        raise UserError(f"a probe needs at least {_FEWEST} texts of each kind; there are {found}")
    states = last_states(model, tokenizer, [*positive, *negative])
    labels = torch.arange(len(positive) + len(negative)) < len(positive)
    return probe_layers(states, labels, seed=seed)


def probe_layers(
    states: Float[Tensor, "layers texts hidden"], labels: Bool[Tensor, " texts"], *, seed: int = 0
) -> Raptor:
    """The same from states that are there already. Raises ``UserError`` for fewer than 5 texts of a kind."""
    train, validation, test = split(labels, seed)
    probes = [tuned(layer, x.double(), labels, train, validation, test) for layer, x in enumerate(states)]
    return Raptor(tuple(probes), len(train), len(validation), len(test))


def split(
    labels: Bool[Tensor, " texts"], seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " validation"], Int[Tensor, " test"]]:
    """Indices of 64, 16 and 20 % of each kind, at least one text of each kind in each part."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[], [], []]
    for kind in (True, False):
        index = (labels == kind).nonzero().flatten()
        if len(index) < _FEWEST:
            raise UserError(f"a probe needs at least {_FEWEST} texts of each kind; one has {len(index)}")
        index = index[torch.randperm(len(index), generator=generator)]
        test = round(0.2 * len(index))
        validation = max(round(0.2 * (len(index) - test)), 1)
        for part, chosen in zip(parts, index.split([len(index) - test - validation, validation, test]), strict=True):
            part.append(chosen)
    train, validating, testing = (torch.cat(part) for part in parts)
    return train, validating, testing


def tuned(
    layer: int,
    states: Float[Tensor, "texts hidden"],
    labels: Bool[Tensor, " texts"],
    train: Int[Tensor, " train"],
    validation: Int[Tensor, " validation"],
    test: Int[Tensor, " test"],
) -> Probe:
    """One layer's probe: C by validation, then a fit to training and validation parts together."""
    mean, scale = states[train].mean(0), states[train].std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    z = (states - mean) / scale
    strength, accuracy = 1.0, -1.0
    for candidate, weight, bias in ridge_path(z[train], labels[train], STRENGTHS):
        reached = _accuracy(z[validation] @ weight + bias, labels[validation])
        if reached > accuracy:
            strength, accuracy = candidate, reached
        if accuracy == 1:
            break
    both = torch.cat((train, validation))
    ((_, u, c),) = ridge_path(z[both], labels[both], [strength])
    weight = u / scale
    bias = float(c - weight @ mean)
    return Probe(layer, weight, bias, 1 / strength, accuracy, _accuracy(states[test] @ weight + bias, labels[test]))


def ridge_path(
    z: Float[Tensor, "texts hidden"], labels: Bool[Tensor, " texts"], strengths: Sequence[float]
) -> Iterator[tuple[float, Float[Tensor, " hidden"], float]]:
    """The minimiser (u, c) for each C of ``strengths``, each started at the one before.

    By Newton's method with step halving, in the span of the texts: u is a sum of theirs.
    """
    basis, coordinates = None, z
    if len(z) < z.shape[1]:
        basis, triangle = torch.linalg.qr(z.T)
        coordinates = triangle.T
    inputs = torch.cat((coordinates, torch.ones_like(coordinates[:, :1])), 1)
    signs = labels.to(z) * 2 - 1
    penalised = torch.ones_like(inputs[0])
    penalised[-1] = 0
    theta = torch.zeros_like(penalised)
    for strength in strengths:
        theta = _newton(inputs, signs, penalised, strength, theta)
        u = theta[:-1] if basis is None else basis @ theta[:-1]
        yield strength, u, theta[-1].item()


def _newton(inputs: Tensor, signs: Tensor, penalised: Tensor, strength: float, theta: Tensor) -> Tensor:
    def loss(at: Tensor) -> Tensor:
        return (penalised * at).square().sum() / 2 - strength * nn.functional.logsigmoid(signs * (inputs @ at)).sum()

    value = loss(theta)
    for _ in range(100):
        wrong = torch.sigmoid(-signs * (inputs @ theta))
        slope = penalised * theta - strength * inputs.T @ (signs * wrong)
        curvature = (strength * inputs.T * (wrong * (1 - wrong))) @ inputs + penalised.diag()
        step = -torch.linalg.solve(curvature, slope)
        gain = -(slope @ step)
        if gain < 1e-12 * (1 + value):
            return theta + step
        size = 1.0
        while (lower := loss(theta + size * step)) > value - 1e-4 * size * gain and size > 1e-6:
            size /= 2
        theta, value = theta + size * step, lower
    return theta


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return ((logits > 0) == labels).double().mean().item()


@torch.no_grad()
def last_states(
    model: PreTrainedModel, tokenizer: Tokenizer, texts: Sequence[str]
) -> Float[Tensor, "layers texts hidden"]:
    """The residual stream behind each layer at the last token of each text, which the separator precedes.

    Raises ``UserError`` for a text without tokens or longer than the model reads.
    """
    longest = getattr(model.config, "max_position_embeddings", None) or math.inf
    encoded = tokenizer.encode_batch(texts)
    by_length: dict[int, list[int]] = {}
    for index, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
        if not len(ids):
            raise UserError(f"the text {text[:40]!r} has no tokens; each text needs some")
        if len(ids) >= longest:
            raise UserError(f"the text {text[:40]!r}... has {len(ids)} tokens; the model reads {longest - 1}")
        by_length.setdefault(len(ids), []).append(index)
    states: list[Tensor] = []
    found: dict[int, Tensor] = {}

    def keep(layer: int, state: Float[Tensor, "batch time hidden"]) -> None:
        states.append(state[:, -1].float().cpu())

    with at_layers(model, keep):
        for indices in by_length.values():
            for start in range(0, len(indices), 16):
                batch = indices[start : start + 16]
                states.clear()
                rows = [[tokenizer.separator, *encoded[index]] for index in batch]
                model(torch.tensor(rows, device=model.device), use_cache=False)
                found |= zip(batch, torch.stack(states, 1), strict=True)
    return torch.stack([found[index] for index in range(len(texts))], 1)


@contextmanager
def steered(model: PreTrainedModel, probes: Sequence[Probe], target: float) -> Iterator[None]:
    """While it lasts, the last token's state behind each probe's layer is moved along its concept vector.

    ``target`` is the probability that each probe gives the state afterwards. A state that is there or beyond already
    (above a target over ½, below one under it) stays as it is. Layers act in order, each on what those before left.

    Raises ``UserError`` for a target that is no probability strictly between 0 and 1, or for no probe.
    """
    if not 0 < target < 1:
        raise UserError(f"the target {target} is no probability between 0 and 1; 0.8 steers towards the concept")
    if not probes:
        raise UserError("there is no probe to steer by; give one, or accept lower accuracies")
    goal = math.log(target / (1 - target))
    by_layer = {probe.layer: probe for probe in probes}

    def shift(layer: int, state: Float[Tensor, "batch time hidden"]) -> Tensor | None:
        probe = by_layer.get(layer)
        if probe is None:
            return None
        last = state[:, -1].double()
        missing = goal - probe.logits(last.cpu()).to(last)
        missing = missing.clamp(min=0) if target > 0.5 else missing.clamp(max=0)
        weight = probe.weight.to(last)
        moved = last + missing[:, None] * weight / weight.square().sum()
        return torch.cat((state[:, :-1], moved.to(state)[:, None]), 1)

    with at_layers(model, shift):
        yield
