"""What skipping one layer does to the later ones and to the output.

    influence   I[s, l] = max over tokens of ‖c_l − c'_l‖ / ‖c_l‖,   c_l = h_{l+1} − h_l, l > s
    effect      O[s] = max over tokens of ‖p − p'‖₂,   cost[s] = loss' − loss
    depth score d = Σ_s s·e_s / Σ_s e_s,   e_s = mean over l > s of I[s, l],   layers counted from 1

where ' is the pass in which layer s gives back what it was given, at every token but the first. All skips of a window
go through the model side by side with a clean pass, so that nothing is kept from one pass to the next. Csordás,
Manning, Potts, 2025, arXiv:2505.13898.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import EPSILON
from assay.diagnostics.subject import Subject, stream_given
from assay.diagnostics.windows import TOGETHER, Windows

LENGTH = 128
"""Tokens of each window that are used."""
CHEAP = 0.01
SHARE = 0.25


@diagnostics.register("layer-skipping")
class LayerSkipping(Diagnostic):
    """``cheapest`` and ``dearest`` layer to skip (nats), ``free_layers`` (share of those that cost under 0.01 nats),
    ``late_over_early`` (mean influence of the second half of the layers beside the first), ``depth_score``."""

    cost = "passes"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        count = len(subject.layers)
        self.influence = torch.zeros(count, count)
        self.effect = torch.zeros(count)
        self.costs = torch.zeros(count)
        self.windows = 0

    @torch.no_grad()
    def work(self, windows: Windows) -> None:
        for name in windows.names:
            ids = windows.ids[windows.domains.index(name), :LENGTH].to(self.subject.device)
            together = max(1, TOGETHER // len(ids) - 1)
            for skipped in torch.arange(len(self.subject.layers)).split(together):
                self._skip(ids, skipped.tolist())
            self.windows += 1

    def _skip(self, ids: Tensor, skipped: list[int]) -> None:
        """Row 0 is clean, row i + 1 skips layer ``skipped[i]``."""
        rows = ids.expand(len(skipped) + 1, -1)
        hooks = []
        for layer in self.subject.layers:
            watch = _Skip(self, layer.index, skipped)
            hooks.append(layer.module.register_forward_hook(watch, with_kwargs=True))
        try:
            logits = self.subject.logits(rows)[:, :-1].float()
        finally:
            for hook in hooks:
                hook.remove()
        clean = logits[0].softmax(-1)
        losses = nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(-1)
        for row, index in enumerate(skipped, 1):
            difference = (logits[row].softmax(-1) - clean).norm(dim=-1).max()
            self.effect[index] = max(self.effect[index], difference.cpu())
            self.costs[index] += (losses[row] - losses[0]).cpu()

    def result(self) -> Result:
        count = len(self.costs)
        costs = (self.costs / self.windows).tolist()
        later = torch.arange(count - 1, -1, -1).clamp(min=1)
        mean = self.influence.sum(-1) / later
        half = count // 2
        scalars = {
            "cheapest": min(costs),
            "dearest": max(costs),
            "free_layers": sum(cost < CHEAP for cost in costs) / count,
            "depth_score": ((torch.arange(1, count + 1) * mean).sum() / mean.sum().clamp(min=EPSILON)).item(),
        }
        if half > 1:
            early, late = mean[:half].mean().item(), mean[half : count - 1].mean().item()
            scalars["late_over_early"] = late / max(early, EPSILON)
        free = sorted(
            ({"layer": i, "cost": round(cost, 4)} for i, cost in enumerate(costs) if cost < CHEAP),
            key=lambda place: place["cost"],
        )
        found = []
        if len(free) >= max(2, SHARE * count):
            found.append(
                Finding(
                    "layer-skipping",
                    "idle-depth",
                    f"{len(free)} of {count} layers can each be skipped for less than {CHEAP} nats per token",
                    len(free) / count,
                    SHARE,
                    "chosen here: a quarter of the layers",
                    "these layers do little that the others do not; the network is deeper than it makes use of",
                    tuple(free),
                    len(free) / count / SHARE,
                )
            )
        arrays = {"cost": costs, "effect": self.effect.tolist(), "influence": self.influence.tolist()}
        return Result(scalars, arrays, found)


class _Skip:
    """At one layer: puts its input in place of its output in the row that skips it, and compares the others' change
    with the clean one."""

    def __init__(self, diagnostic: LayerSkipping, layer: int, skipped: list[int]) -> None:
        self.diagnostic, self.layer, self.skipped = diagnostic, layer, skipped

    def __call__(
        self, module: nn.Module, inputs: tuple[object, ...], options: dict[str, object], output: object
    ) -> object:
        given = stream_given(inputs, options, self.diagnostic.subject)
        changed: Tensor = output if isinstance(output, Tensor) else output[0]  # type: ignore[index]
        update = (changed - given).float()
        clean = update[0]
        distance = (update[1:] - clean).norm(dim=-1) / clean.norm(dim=-1).clamp(min=EPSILON)
        influence = self.diagnostic.influence
        for row, layer in enumerate(self.skipped):
            if layer < self.layer:
                influence[layer, self.layer] = max(influence[layer, self.layer], distance[row, 1:].max().cpu())
        if self.layer not in self.skipped:
            return output
        row = self.skipped.index(self.layer) + 1
        changed = changed.clone()
        changed[row, 1:] = given[row, 1:]
        return changed if isinstance(output, Tensor) else (changed, *output[1:])  # type: ignore[index]
