"""Active, dormant and dead heads.

    activity of head h    a_h = ‖W_h‖ · sqrt( E ‖o_h − E o_h‖² )

with o_h the head's mixture of values over the tokens and W_h the columns of the output map that read it: how much of
what the head writes depends on the input. A head is dead where a_h is under a hundredth of the median head's of its
layer. A head is dormant on a domain where it gives a sink 0.3 of its attention or more, and active elsewhere; heads
dormant on one kind of text and active on another are what Guo et al., 2024, arXiv:2410.13835, describe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import Attention
from assay.diagnostics.means import Means
from assay.diagnostics.standard.attention_sinks import SINK
from assay.diagnostics.subject import Subject, last_map

DEAD = 0.01


@diagnostics.register("head-activity")
class HeadActivity(Diagnostic):
    """``dead_heads`` (share), ``switching_heads`` (share that is dormant on one domain and active on another)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()
        self.domains: list[str] = []

    def on_attention(self, attention: Attention) -> None:
        if attention.domain not in self.domains:
            self.domains.append(attention.domain)
        output = attention.output.float().transpose(1, 2).flatten(0, 1)
        self.means.add("output", attention.layer, output)
        self.means.add("square", attention.layer, attention.output_square.transpose(1, 2).flatten(0, 1))
        self.means.add(f"sink {attention.domain}", attention.layer, attention.received[..., 0])

    def result(self) -> Result | None:
        if "output" not in self.means:
            return None
        activities = [self._activity(layer) for layer in self.means.layers("output")]
        dead, total = [], 0
        for layer, activity in zip(self.means.layers("output"), activities, strict=True):
            median = activity.median().item()
            total += len(activity)
            if len(activity) > 1:
                shares = (activity / max(median, 1e-30)).tolist()
                dead += [
                    {"layer": layer, "head": head, "share": share}
                    for head, share in enumerate(shares)
                    if share < DEAD
                ]
        dead.sort(key=lambda head: head["share"])
        switching = self._switching()
        found = []
        if dead:
            worst = dead[0]["share"]
            found.append(
                Finding(
                    "head-activity",
                    "dead-head",
                    f"of {total} heads, {len(dead)} write less than {DEAD:.0%} of what their layer's median head "
                    "writes, once what is the same for every token is taken away",
                    worst,
                    DEAD,
                    "chosen here: a hundredth of the layer's median head",
                    "the head's weights take memory and time and do nothing; it can be pruned, or did not train",
                    tuple(dead),
                    DEAD / worst if worst > 0 else float("inf"),
                )
            )
        scalars = {"dead_heads": len(dead) / total}
        if len(self.domains) > 1:
            scalars["switching_heads"] = len(switching) / total
        arrays: dict[str, Sequence[Any]] = {
            "activity": [activity.tolist() for activity in activities],
            "switching": switching,
        }
        return Result(scalars, arrays, found)

    def _activity(self, layer: int) -> Tensor:
        mean, square = self.means.of("output", layer), self.means.of("square", layer)
        varying = (square - mean.square().sum(-1)).clamp(min=0).sqrt()
        attention = self.subject.layers[layer].attention
        output = None if attention is None else last_map(attention, self.subject.hidden_size)
        return varying if output is None else varying * _column_norms(output, len(varying))

    def _switching(self) -> list[dict[str, object]]:
        """Heads that sink on one domain, and give the first token less than half of that on another."""
        found: list[dict[str, object]] = []
        for layer in self.means.layers("output"):
            shares = torch.stack([self.means.of(f"sink {domain}", layer) for domain in self.domains])
            least, most = shares.min(0), shares.max(0)
            for head in torch.where((most.values >= SINK) & (least.values < most.values / 2))[0].tolist():
                dormant, active = self.domains[most.indices[head]], self.domains[least.indices[head]]
                found.append({"layer": layer, "head": head, "dormant": dormant, "active": active})
        return found


def _column_norms(output: nn.Module, heads: int) -> Tensor:
    """Of the part of the output map that reads each head."""
    weight = output.get_parameter("weight").detach().double().cpu()
    columns = weight if isinstance(output, nn.Linear) else weight.T
    return columns.unflatten(1, (heads, -1)).square().sum((0, 2)).sqrt()
