from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.claims.experiments import experiments
from assay.claims.experiments.time_dependent_ln_diffusion import NORMS, DiffusionTransformer, _Branch, _loss
from assay.nn.norm.time_dependent_ln import vp_log_snr


def build(name: str) -> DiffusionTransformer:
    torch.manual_seed(0)
    return DiffusionTransformer(NORMS[name], hidden_size=16, depth=1, num_heads=2, adaptive=name == "adaln")


class _Same(nn.Module):
    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return x


def test_patches_go_back_to_where_they_came_from() -> None:
    model = build("no_time")
    model.embedding = model.head = model.final_norm = _Same()
    model.branches = nn.ModuleList()
    model.position.data = torch.zeros(1)
    images = torch.arange(128.0).view(2, 8, 8)
    assert torch.equal(model(images, torch.zeros(2)), images)
    seen: list[Tensor] = []
    model.embedding.register_forward_hook(lambda module, arguments, output: seen.append(output))
    model(images, torch.zeros(2))
    assert seen[0][0, 1].tolist() == [2, 3, 10, 11]


def test_all_arms_start_from_the_same_weights() -> None:
    states = {name: build(name).state_dict() for name in NORMS}
    shared = [key for key in states["no_time"] if "norm" not in key]
    assert "branches.0.function.inputs.weight" in shared
    for name in NORMS:
        assert all(torch.equal(states[name][key], states["no_time"][key]) for key in shared)


def test_adaptive_branches_start_closed_and_follow_the_time() -> None:
    torch.manual_seed(0)
    branch = _Branch(nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False), hidden_size=6, adaptive=True)
    x, time = torch.randn(2, 3, 6), torch.randn(2, 6)
    assert torch.equal(branch(x, time), x)
    nn.init.normal_(branch.modulation.weight)
    gate, shift, scale = branch.modulation(nn.functional.silu(time[1])).split(6)
    expected = x[1] + gate * branch.function((1 + scale) * branch.norm(x[1]) + shift)
    torch.testing.assert_close(branch(x, time)[1], expected)


@pytest.mark.parametrize("name", NORMS)
def test_only_arms_with_a_time_depend_on_it(name: str) -> None:
    model = build(name)
    for key, parameter in model.named_parameters():
        if "norm" in key or "modulation" in key:
            nn.init.normal_(parameter)

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.final_norm, self.model = model.final_norm, model

        def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
            outputs.append(self.model(torch.ones(2, 8, 8), t))
            return outputs[-1]

    outputs: list[Tensor] = []
    for t in (0.1, 0.9):
        _loss(Recorder(), torch.zeros(2, 8, 8), torch.full((2,), t), torch.Generator())
    assert torch.equal(*outputs) == (name == "no_time")


def test_the_noisy_image_has_the_signal_to_noise_ratio_of_its_time() -> None:
    class Zero(nn.Module):
        final_norm = None

        def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
            seen.append(noisy)
            return torch.zeros_like(noisy)

    seen: list[Tensor] = []
    t = torch.full((2000,), 0.4)
    loss = _loss(Zero(), torch.full((2000, 8, 8), 2.0), t, torch.Generator().manual_seed(0))
    signal, noise = seen[0].mean() ** 2 / 4, seen[0].var()
    torch.testing.assert_close(torch.log(signal / noise), vp_log_snr(t[0]), atol=0.02, rtol=0)
    torch.testing.assert_close(signal + noise, torch.tensor(1.0), atol=0.01, rtol=0)
    torch.testing.assert_close(loss, torch.tensor(1.0), atol=0.01, rtol=0)


def test_one_step_is_reproducible_and_td_ln_has_fewer_parameters() -> None:
    pytest.importorskip("sklearn")
    options = {"steps": 2, "batch_size": 4, "hidden_size": 8, "depth": 1, "num_heads": 2, "draws": 1}
    found, again = (experiments.build("time-dependent-ln-diffusion", options, seed=0) for _ in range(2))
    assert found == again
    assert found["td_ln_parameters"] - found["no_time_parameters"] == 3 * 6 * 8
    assert found["td_ln_parameters"] < found["adaln_parameters"]
