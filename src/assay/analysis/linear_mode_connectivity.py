"""Linear mode connectivity: the loss on the straight line between two trained networks, whole and by layer.

    B(α) = L(θ₁ + α d) − (1 − α) L(θ₁) − α L(θ₂),  d = θ₂ − θ₁;   the barrier is max over α of B(α)
    B̂(½) = (g₁ − g₂)·d / 4 + (dᵀH₁d + dᵀH₂d) / 16

B̂ is B at the middle when L is expanded to second order at both ends (gradients g, Hessians H) and the two expansions
are mixed with their distances as weights. A layer's barrier moves this layer alone along the line; its B̂ has d
zero elsewhere, which leaves diagonal blocks of H. Singh, Adilova, Kamp, Fischer, Schölkopf, Hofmann, 2024,
arXiv:2406.16300.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from assay.errors import UserError

Loss = Callable[[nn.Module, Any], Tensor]
"""The mean loss of a network on a batch."""

_BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Line:
    """Losses along a straight line: ``losses[i]`` at the share ``fractions[i]`` of the way."""

    fractions: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def barriers(self) -> tuple[float, ...]:
        """The loss over the chord between the two ends, at each of ``fractions``."""
        first, last = self.losses[0], self.losses[-1]
        return tuple(
            loss - (1 - fraction) * first - fraction * last
            for fraction, loss in zip(self.fractions, self.losses, strict=True)
        )

    @property
    def barrier(self) -> float:
        """The largest of ``barriers``, 0 at least, as it is 0 at the ends."""
        return max(self.barriers)


@dataclass(frozen=True)
class Layer:
    """One layer's lines, 0, ½ and 1: from the first network towards the second, and back from the second.

    ``predicted`` is the layer's B̂(½), None where it was not asked for.
    """

    name: str
    from_first: Line
    from_second: Line
    predicted: float | None


@dataclass(frozen=True)
class Connectivity:
    """The line between two networks, its B̂(½), the distance ‖d‖, and the layers in the network's order."""

    line: Line
    predicted: float | None
    distance: float
    layers: tuple[Layer, ...]


def connectivity(
    first: nn.Module,
    second: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    *,
    points: int = 11,
    layers: bool = True,
    predict: bool = False,
) -> Connectivity:
    """The barrier between two networks of one architecture, and of each of its layers.

    Networks are evaluated in evaluation mode, on a copy. Parameters that are tied move once. The statistics of batch
    norms do not interpolate, so they are estimated anew from ``batches`` at every point. A layer is what ``layer_of``
    makes of parameters' names.

    Args:
        loss: called with a network and one of ``batches``; the mean of what it returns is L. It is nats of
            cross-entropy as a rule; any number will do unless ``predict`` asks for derivatives.
        batches: of equal sizes.
        points: of the whole line, ends included; 3 at least.
        layers: whether to evaluate each layer, four losses per layer.
        predict: whether to compute B̂, one backward through a backward per layer, end and batch.

    Raises ``UserError`` if the networks differ in more than their parameters' values, or a number is too small.
    """
    if points < 3:
        raise UserError(f"points is {points}; a line needs its two ends and something between them, so 3 at least")
    if not batches:
        raise UserError("there is no batch to compute a loss on")
    pair = _Pair(first, second, loss, batches)
    everything = frozenset(pair.first)
    groups: dict[str, list[str]] = {}
    for name in pair.first if layers else ():
        groups.setdefault(layer_of(name), []).append(name)
    line = pair.line(everything, [i / (points - 1) for i in range(points)])
    for which, value in (("first", line.losses[0]), ("second", line.losses[-1])):
        if not math.isfinite(value):
            raise UserError(f"the {which} network's loss is {value}, so there is no line to compare with")
    found = pair.predictions([everything, *groups.values()]) if predict else [None] * (1 + len(groups))
    return Connectivity(
        line,
        found[0],
        math.sqrt(sum((pair.second[name] - pair.first[name]).double().square().sum().item() for name in everything)),
        tuple(
            Layer(
                name,
                pair.line(names, (0, 0.5, 1), line.losses[0]),
                pair.line(names, (0, 0.5, 1), line.losses[-1], back=True),
                predicted,
            )
            for (name, names), predicted in zip(groups.items(), found[1:], strict=True)
        ),
    )


def layer_of(parameter: str) -> str:
    """``layers.3`` for ``layers.3.mlp.up_proj.weight``: up to the first number, else the module's name."""
    parts = parameter.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1]) or parameter


def fork_angle(origin: nn.Module, first: nn.Module, second: nn.Module) -> float:
    """The angle in degrees between θ₁ − θ₀ and θ₂ − θ₀, with θ₀ the network from which both were trained.

    Raises ``UserError`` if the networks are not of one architecture, or one of the two is still ``origin``.
    """
    start = dict(origin.named_parameters())
    one, other = dict(first.named_parameters()), dict(second.named_parameters())
    _check_alike(start, one)
    _check_alike(start, other)
    products = torch.zeros(3, dtype=torch.float64)
    for name, parameter in start.items():
        x, y = ((end[name] - parameter).detach().double() for end in (one, other))
        products += torch.stack([(x * y).sum(), x.square().sum(), y.square().sum()]).cpu()
    inner, of_first, of_second = products.tolist()
    if not (of_first and of_second):
        raise UserError("a network equals the one that it was forked from, so there is no angle")
    return math.degrees(math.acos(max(-1.0, min(1.0, inner / math.sqrt(of_first * of_second)))))


class _Pair:
    """Two networks' parameters, and a copy of the first to put mixtures into."""

    def __init__(self, first: nn.Module, second: nn.Module, loss: Loss, batches: Sequence[Any]) -> None:
        self.first = {name: parameter.detach() for name, parameter in first.named_parameters()}
        self.second = {name: parameter.detach() for name, parameter in second.named_parameters()}
        _check_alike(self.first, self.second)
        self.module = copy.deepcopy(first).eval()
        self.norms = [
            module
            for module in self.module.modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        estimated = {id(buffer) for norm in self.norms for buffer in norm.buffers()}
        others = dict(second.named_buffers())
        for name, buffer in self.module.named_buffers():
            if id(buffer) not in estimated and (name not in others or not torch.equal(buffer, others[name])):
                raise UserError(f"buffer {name!r} differs between the two networks, and buffers do not interpolate")
        self.loss, self.batches = loss, batches

    def put(
        self, start: Mapping[str, Tensor], end: Mapping[str, Tensor], moved: Collection[str], share: float
    ) -> None:
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(torch.lerp(start[name], end[name], share) if name in moved else start[name])
            for norm in self.norms:
                norm.reset_running_stats()
                norm.momentum = cast(float, None)  # None: the mean over batches
                norm.train()
            if self.norms:
                for batch in self.batches:
                    self.loss(self.module, batch)
                self.module.eval()

    def line(
        self, moved: Collection[str], fractions: Sequence[float], known: float | None = None, *, back: bool = False
    ) -> Line:
        """``known`` is the loss at the start."""
        start, end = (self.second, self.first) if back else (self.first, self.second)
        losses = [] if known is None else [known]
        for fraction in fractions[len(losses) :]:
            self.put(start, end, moved, fraction)
            with torch.no_grad():
                losses.append(math.fsum(self.loss(self.module, batch).item() for batch in self.batches))
                losses[-1] /= len(self.batches)
        return Line(tuple(fractions), tuple(losses))

    def predictions(self, groups: Sequence[Collection[str]]) -> list[float]:
        """B̂(½) with d zero outside of the group, for each group of parameters."""
        found = [0.0] * len(groups)
        parameters = dict(self.module.named_parameters())
        for sign, place in ((1, self.first), (-1, self.second)):
            self.put(place, place, (), 0)
            for batch in self.batches:
                with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                    gradients = self._gradients(batch, parameters)
                    for position, group in enumerate(groups):
                        slope, curvature = self._along(group, gradients, parameters)
                        found[position] += (sign * slope / 4 + curvature / 16) / len(self.batches)
        return found

    def _gradients(self, batch: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        loss = self.loss(self.module, batch)
        found = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, materialize_grads=True)
        return dict(zip(parameters, found, strict=True))

    def _along(
        self, group: Collection[str], gradients: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> tuple[float, float]:
        """g·d and dᵀHd of the group."""
        d = {name: self.second[name] - self.first[name] for name in group}
        slope = torch.stack([(gradients[name] * d[name]).sum() for name in group]).sum()
        if not slope.requires_grad:
            return slope.item(), 0.0
        second = torch.autograd.grad(
            slope, [parameters[name] for name in group], retain_graph=True, materialize_grads=True
        )
        return slope.item(), sum((h * d[name]).sum().item() for name, h in zip(group, second, strict=True))


def _check_alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    for name in [*first, *second]:
        if name not in first or name not in second:
            which = "second" if name in first else "first"
            raise UserError(f"the {which} network has no parameter {name!r}; both need the same architecture")
        if first[name].shape != second[name].shape:
            shapes = " and ".join(str(tuple(place[name].shape)) for place in (first, second))
            raise UserError(f"parameter {name!r} has shapes {shapes} in the two networks; both need the same")
