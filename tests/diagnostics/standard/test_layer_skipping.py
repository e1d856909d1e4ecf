"""Skipping layers side by side against skipping them in passes of their own, and with layers that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from assay.diagnostics import Result, diagnostics
from assay.diagnostics.subject import Subject
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


def passes(
    model: Any, layers: Any, ids: torch.Tensor, skipped: int | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each layer adds, and the logits, in one plain pass of one text."""
    updates: list[torch.Tensor] = []

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        plain = output if isinstance(output, torch.Tensor) else output[0]
        updates.append((plain - inputs[0])[0])
        if module is not (None if skipped is None else layers[skipped]):
            return output
        kept = torch.cat((plain[:, :1], inputs[0][:, 1:]), 1)
        return kept if isinstance(output, torch.Tensor) else (kept, *output[1:])

    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits[0, :-1]
    for handle in handles:
        handle.remove()
    return updates, logits


def test_is_one_pass_for_each_layer(architecture: str, released: Any, windows: Windows, measure: Measure) -> None:
    """Of a window of each domain."""
    model = released(architecture)
    layers = [layer.module for layer in Subject(model).layers]
    influence, effect, cost = torch.zeros(4, 4), torch.zeros(4), torch.zeros(4)
    for ids in (windows.ids[0], windows.ids[2]):
        updates, logits = passes(model, layers, ids, None)
        loss = F.cross_entropy(logits, ids[1:])
        for skipped in range(4):
            changed, others = passes(model, layers, ids, skipped)
            cost[skipped] += (F.cross_entropy(others, ids[1:]) - loss) / 2
            shift = (others.softmax(-1) - logits.softmax(-1)).norm(dim=-1).max()
            effect[skipped] = effect[skipped].maximum(shift)
            for later in range(skipped + 1, 4):
                share = (changed[later] - updates[later]).norm(dim=-1) / updates[later].norm(dim=-1)
                influence[skipped, later] = influence[skipped, later].maximum(share[1:].max())
    result = measure("layer-skipping", model)
    torch.testing.assert_close(torch.tensor(result.arrays["influence"]), influence, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(result.arrays["cost"]), cost, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(result.arrays["effect"]), effect, atol=1e-4, rtol=1e-3)
    assert (torch.tensor(result.arrays["influence"]).tril() == 0).all()


def test_skips_together_and_one_after_the_other(measure: Measure, released: Any, monkeypatch: Any) -> None:
    model = released("llama")
    together = measure("layer-skipping", model)
    monkeypatch.setattr("assay.diagnostics.standard.layer_skipping.TOGETHER", 1)
    alone = measure("layer-skipping", model)
    for name, numbers in together.arrays.items():
        torch.testing.assert_close(torch.tensor(alone.arrays[name]), torch.tensor(numbers), atol=1e-4, rtol=1e-3)
    assert alone.scalars == pytest.approx(together.scalars, abs=1e-4, rel=1e-3)


def test_a_layer_that_does_nothing_costs_nothing(measure: Measure, released: Any) -> None:
    model = released("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    arrays = measure("layer-skipping", model).arrays
    assert arrays["cost"][1] == arrays["effect"][1] == 0
    assert arrays["influence"][1] == [0, 0, 0, 0]
    assert arrays["influence"][0][2] > 0


def test_the_depth_score_by_hand(llama: Subject) -> None:
    """e = (4, 3, 2, 1) has the score (4 + 6 + 6 + 4) / 10 = 2, which the last row has no later layer for."""
    diagnostic = diagnostics.build("layer-skipping", subject=llama)
    diagnostic.influence = torch.diag(torch.tensor([12.0, 6.0, 2.0, 1.0]))  # over 3, 2, 1 and no later layers
    diagnostic.windows = 1
    result = diagnostic.result()
    assert result is not None
    assert result.scalars["depth_score"] == pytest.approx(2)
    assert result.scalars["late_over_early"] == pytest.approx(2 / 3.5)


def test_idle_layers_are_found(measure: Measure, released: Any) -> None:
    model = released("llama")
    with torch.no_grad():
        for layer in model.model.layers[2:]:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    (finding,) = measure("layer-skipping", model).findings
    assert finding.symptom == "idle-depth"
    assert {"layer": 2, "cost": 0.0} in finding.where
    assert {"layer": 3, "cost": 0.0} in finding.where
    assert not measure("layer-skipping", released("llama")).findings
