"""How few neurons an MLP needs, by hand, against an exhaustive search, and with most neurons silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.diagnostics import Result
from assay.diagnostics.standard.activation_sparsity import activation_ratio
from assay.diagnostics.windows import Windows

Measure = Callable[..., Result]


class TestRatio:
    """Neurons add (3, 0), (0, -2) and (1, 0) to make (4, -2): without the smallest, 1 / √20 = 0.2236 is missing."""

    COLUMNS = torch.tensor([[1.0, 0.0, 2.0], [0.0, 2.0, 0.0]])
    VALUES = torch.tensor([[3.0, -1.0, 0.5]])

    @pytest.mark.parametrize(("error", "kept"), [(0.2, 3), (0.23, 2), (0.49, 2), (0.51, 1), (0.99, 1), (1.0, 0)])
    def test_by_hand(self, error: float, kept: int) -> None:
        assert activation_ratio(self.VALUES, self.COLUMNS, error) == pytest.approx(kept / 3)

    def test_the_scale_of_a_neuron_is_free(self) -> None:
        scale = torch.tensor([10.0, 0.1, 7.0])
        assert activation_ratio(self.VALUES * scale, self.COLUMNS / scale, 0.3) == pytest.approx(2 / 3)

    def test_what_is_zero_costs_nothing(self) -> None:
        values = torch.cat((self.VALUES, torch.zeros(1, 5)), 1)
        assert activation_ratio(values, torch.cat((self.COLUMNS, torch.ones(2, 5)), 1)) == 3 / 8


def exhaustive(values: np.ndarray, columns: np.ndarray) -> float:
    sizes = np.abs(values) * np.linalg.norm(columns, axis=0)
    output = np.linalg.norm(values @ columns.T, axis=-1)
    for kept, threshold in enumerate(np.sort(sizes.ravel())[::-1]):
        tail = np.linalg.norm((values * (sizes <= threshold)) @ columns.T, axis=-1)
        if (tail / output).mean() <= 0.2:
            return kept / sizes.size
    return 1.0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_is_the_exhaustive_search(name: str, measure: Measure, released: Any, windows: Windows) -> None:
    """To a 256th of the neurons; the first 64 tokens of a batch count, but for its first."""
    model = released(name)
    blocks = model.model.layers if name == "llama" else model.transformer.h
    read: list[np.ndarray] = []
    maps = [block.mlp.down_proj if name == "llama" else block.mlp.c_proj for block in blocks]
    for down in maps:
        down.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].double().flatten(0, -2).numpy()))
    with torch.no_grad():
        model(windows.ids[:2])
    weights = [down.weight.detach().double().numpy() for down in maps]
    columns = weights if name == "llama" else [weight.T for weight in weights]
    expected = [exhaustive(values[1:65], map) for values, map in zip(read, columns, strict=True)]
    assert measure("activation-sparsity", released(name)).arrays["activation_ratio"] == pytest.approx(
        expected, abs=1 / 256
    )


def test_silent_neurons_are_counted(measure: Measure, released: Any) -> None:
    """Three of four neurons of GPT-2's MLP get no input and have no bias: GELU(0) = 0."""
    model = released("gpt2")
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_fc.weight[:, 32:] = 0
            block.mlp.c_fc.bias[32:] = 0
    silent, healthy = measure("activation-sparsity", model), measure("activation-sparsity", released("gpt2"))
    assert silent.arrays["zeros"] == pytest.approx([0.75] * 4, abs=0.01)
    assert silent.scalars["activation_ratio"] < 0.25 < healthy.scalars["activation_ratio"]
