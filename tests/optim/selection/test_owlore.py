"""Outlier ratios by hand and under rescaling; the draw by them; GaLore alone where all blocks are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.optim import optimizers, parameter_groups, selections
from assay.optim.selection.owlore import OwLore, outlier_ratios

IDS = torch.randint(17, (3, 8), generator=torch.Generator().manual_seed(0))


def decoder(depth: int = 4) -> Decoder:
    torch.manual_seed(0)
    shape = {"depth": depth, "hidden_size": 32, "num_heads": 2, "vocab_size": 17, "max_length": 8}
    return Decoder(ModelConfig.parse(shape))


def made(
    model: nn.Module, optimizer: str = "adamw", calibration: Callable[[], Tensor] = lambda: IDS, **options: Any
) -> tuple[Any, OwLore]:
    built = optimizers.build(optimizer, params=parameter_groups(model), lr=0.01)
    selection = selections.build("owlore", options, model=model, optimizer=built, seed=0, calibration=calibration)
    assert isinstance(selection, OwLore)
    return built, selection


class Blocks(nn.Module):
    """Maps of a fixed input, one stack of blocks that do not see each other."""

    def __init__(self, x: Tensor, *blocks: nn.Module) -> None:
        super().__init__()
        self.x, self.blocks = x, nn.ModuleList(blocks)

    def forward(self, ids: Tensor) -> list[Tensor]:
        return [linear(self.x) for block in self.blocks for linear in block]


def maps(*weights: Tensor) -> nn.ModuleList:
    made = [nn.Linear(weight.shape[1], weight.shape[0], bias=False) for weight in weights]
    for linear, weight in zip(made, weights, strict=True):
        linear.weight.data.copy_(weight)
    return nn.ModuleList(made)


class TestRatios:
    def ratio(self, x: Tensor, *weights: Tensor, threshold: float = 5.0) -> float:
        network = Blocks(x, maps(*weights))
        return outlier_ratios(network, [network.blocks[0]], x[..., 0], threshold).item()

    def test_worked_example(self) -> None:
        """A = [[√2, 0, 0], [0, 0, 20 √2]], mean 4.95: one of six is above 5 times that, none above 13 times."""
        weight = torch.tensor([[1.0, 0, 0], [0, 0, 20]])
        x = torch.tensor([[[1.0, 2, 1], [1, 2, 1]]])
        assert self.ratio(x, weight) == pytest.approx(100 / 6)
        assert self.ratio(x, weight, threshold=13.0) == 0
        assert self.ratio(x.expand(4, 2, 3), weight) == pytest.approx(100 / 6)

    def test_a_large_block_by_numpy(self) -> None:
        """The mean is that of the whole block, not of each matrix."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(4, 6, 12, generator=generator)
        weights = [torch.randn(20, 12, generator=generator) ** 3, 0.1 * torch.randn(9, 12, generator=generator)]
        scale = np.sqrt((x.numpy().astype(float) ** 2).sum(1).mean(0))
        values = np.concatenate([(np.abs(weight.numpy()) * scale).ravel() for weight in weights])
        expected = 100 * (values > 5 * values.mean()).mean()
        assert 0 < expected < 20
        assert self.ratio(x, *weights) == pytest.approx(expected, rel=1e-6)

    def test_scaling_a_block_or_its_inputs_changes_nothing_but_one_matrix_does(self) -> None:
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(2, 6, 12, generator=generator)
        one, two = (torch.randn(20, 12, generator=generator) ** 3 for _ in range(2))
        plain = self.ratio(x, one, two)
        assert self.ratio(x, 8 * one, 8 * two) == plain
        assert self.ratio(8 * x, one, two) == plain
        assert self.ratio(x, 8 * one, two) != plain

    def test_maps_of_transformers_that_keep_the_transpose(self) -> None:
        from transformers.pytorch_utils import Conv1D

        weight = torch.randn(20, 12, generator=torch.Generator().manual_seed(3)) ** 3
        x = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(4))
        conv = Conv1D(20, 12)
        conv.weight.data.copy_(weight.T)
        network = Blocks(x, nn.ModuleList([conv]))
        assert outlier_ratios(network, [network.blocks[0]], IDS[:2], 5.0).item() == self.ratio(x, weight)

    def test_planted_outliers_are_found_where_they_are_and_nothing_is_left_behind(self) -> None:
        model = decoder().train()
        with torch.no_grad():
            for matrix in model.layers[2].parameters():
                if matrix.ndim == 2:
                    matrix[:, 0] *= 40
        scores = outlier_ratios(model, list(model.layers), IDS, 13.0)
        assert scores[2] > 0.5
        assert scores[[0, 1, 3]].max() == 0
        assert model.training
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert all(p.grad is None for p in model.parameters())


class TestDistributions:
    SCORES = torch.tensor([1.0, 0.0, 3.0, 4.0])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("outlier", [1, 0, 3, 4]),
            ("reverse", [3, 4, 1, 0]),
            ("uniform", [1, 1, 1, 1]),
            ("increase", [1, 2, 3, 4]),
            ("decrease", [4, 3, 2, 1]),
        ],
    )
    def test_by_name(self, name: str, expected: list[int]) -> None:
        _, selection = made(decoder(), distribution=name)
        selection.load_state_dict({"scores": self.SCORES})
        assert selection.weights().tolist() == expected

    def test_single_blocks_are_drawn_in_proportion(self) -> None:
        _, selection = made(decoder(), layers=1, every=2)
        selection.load_state_dict({"scores": self.SCORES})
        found = torch.zeros(4)
        windows = 2000
        for window in range(windows):
            found[selection.active(2 * window + 1)] += 1
        p = self.SCORES / self.SCORES.sum()
        assert ((found / windows - p).abs() <= 4 * (p * (1 - p) / windows) ** 0.5).all()

    def test_equal_scores_are_lisas_draw(self) -> None:
        model = decoder()
        optimizer, selection = made(model, every=3)
        selection.load_state_dict({"scores": torch.full((4,), 0.25)})
        options = {"layers": 2, "every": 3}
        lisa = selections.build("lisa", options, model=model, optimizer=optimizer, seed=0, calibration=None)
        assert [selection.active(s) for s in range(90)] == [lisa.active(s) for s in range(90)]  # type: ignore[attr-defined]

    def test_a_network_without_outliers_is_drawn_from_uniformly(self) -> None:
        _, selection = made(decoder())
        selection(0)
        assert selection.scores is not None
        assert not selection.scores.any()
        _, uniform = made(decoder(), distribution="uniform")
        assert [selection.active(s) for s in range(900)] == [uniform.active(s) for s in range(900)]


def test_outliers_are_counted_once_and_kept() -> None:
    calls = []
    _, selection = made(decoder(), calibration=lambda: calls.append(0) or IDS, threshold=3.0)
    for step in range(3):
        selection(step)
    assert len(calls) == 1
    _, other = made(decoder(), calibration=lambda: calls.append(0) or IDS)
    other.load_state_dict(selection.state_dict())
    other(3)
    assert len(calls) == 1
    assert torch.equal(other.weights().tolist() == selection.weights().tolist() and selection.scores, other.scores)


def test_a_window_trains_its_blocks_and_holds_their_states() -> None:
    model = decoder()
    optimizer, selection = made(model, "galore", layers=2, every=2)
    for step in range(6):
        selection(step)
        nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.roll(1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        for index, block in enumerate(model.layers):
            active = index in selection.active(step)
            assert all(p.requires_grad == active and (p in optimizer.state) == active for p in block.parameters())
        assert model.embedding.weight in optimizer.state


def test_with_all_blocks_it_is_galore_alone() -> None:
    chosen, whole = decoder(2), decoder(2)
    one, selection = made(chosen, "galore", layers=2, every=2)
    other = optimizers.build("galore", params=parameter_groups(whole), lr=0.01)
    for step in range(5):
        selection(step)
        for model, optimizer in ((chosen, one), (whole, other)):
            nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.roll(1).flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(chosen.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layers": 5}, "selection 'owlore', option layers=5: the network has only 4 blocks"),
        ({"threshold": 0}, "selection 'owlore', option threshold=0: input should be greater than 0"),
        (
            {"distribution": "normal"},
            "selection 'owlore', option distribution='normal': input should be 'outlier', 'uniform', 'reverse', "
            "'increase' or 'decrease'",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        made(decoder(), **options)
    assert str(caught.value) == line
