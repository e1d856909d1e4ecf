from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AXK2Config
from transformers.models.axk2.modeling_axk2 import AXK2GatedRMSNorm

from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.nn.norm import norms
from assay.nn.norm.gated_norm import GatedNorm
from assay.nn.norm.rms_norm import RMSNorm


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_norm(hidden: int, rank: int = 3, seed: int = 10, **options: Any) -> GatedNorm:
    norm = GatedNorm(hidden, rank=rank, **options).double()
    for offset, parameter in enumerate(norm.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed + offset))
    return norm


def test_worked_number() -> None:
    """From y = [1, 1]: silu(2) = 1.7616 and gates 0.8534 and 0.9713."""
    norm = GatedNorm(2, rank=1, eps=0.0).double()
    norm.down.weight.data.copy_(torch.tensor([[1.0, 1.0]]))
    norm.up.weight.data.copy_(torch.tensor([[1.0], [2.0]]))
    y = norm(torch.tensor([5.0, 5.0], dtype=torch.float64))
    torch.testing.assert_close(y, torch.tensor([0.8534, 0.9713], dtype=torch.float64), atol=5e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_norm_of_a_released_model(dtype: torch.dtype) -> None:
    """A.X-K2 has gates of rank 16 after its norms."""
    theirs = AXK2GatedRMSNorm(AXK2Config(hidden_size=24, gated_norm_rank=16)).to(dtype)
    ours = norms.build("gated-norm", {"eps": theirs.norm.variance_epsilon}, hidden_size=24, place="input").to(dtype)
    for seed, (mine, other) in enumerate(
        (
            (ours.weight, theirs.norm.weight),
            (ours.down.weight, theirs.mlp.fc1.weight),
            (ours.up.weight, theirs.mlp.fc2.weight),
        )
    ):
        mine.data.copy_(draw(*mine.shape, seed=seed))
        other.data.copy_(mine.data)
    x = 10 * draw(7, 24, seed=9, dtype=dtype)
    y = ours(x)
    assert y.dtype == dtype
    assert torch.equal(y, theirs(x))


def test_closed_matrices_halve_the_norm_and_twice_the_gate_is_the_norm() -> None:
    x, plain = draw(5, 8, dtype=torch.float32), RMSNorm(8)
    for scale, factor in ((1.0, 0.5), (2.0, 1.0)):
        norm = GatedNorm(8, rank=4, gate_scale=scale)
        nn.init.zeros_(norm.up.weight)
        assert torch.equal(norm(x), factor * plain(x))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rank=st.integers(1, 8), scale=st.sampled_from([1.0, 2.0]))
def test_gates_shrink_and_keep_signs(seed: int, rank: int, scale: float) -> None:
    norm, x = random_norm(6, rank, seed + 1, gate_scale=scale), draw(4, 6, seed=seed)
    y = norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    gate = norm(x) / y
    assert torch.all(gate > 0)
    assert torch.all(gate < scale)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e4))
def test_the_size_of_the_input_does_not_matter(seed: int, scale: float) -> None:
    norm, x = random_norm(6, seed=seed + 1, eps=0.0), draw(4, 6, seed=seed)
    torch.testing.assert_close(norm(scale * x), norm(x), rtol=1e-9, atol=1e-12)


def test_what_an_outlier_does_to_the_others_a_gate_can_do_without_it() -> None:
    """One entry a among d ones leaves 1 / √((a² + d − 1) / d) of the others."""
    d, a = 8, 100.0
    x = torch.ones(d, dtype=torch.float64)
    outlier = x.clone()
    outlier[0] = a
    rescaled = RMSNorm(d, eps=0.0)(outlier)[1:]
    share = ((a**2 + d - 1) / d) ** -0.5
    torch.testing.assert_close(rescaled.double(), torch.full((d - 1,), share, dtype=torch.float64))
    norm = GatedNorm(d, rank=1, eps=0.0).double()
    nn.init.ones_(norm.down.weight)
    logit = torch.logit(torch.tensor(share, dtype=torch.float64))
    nn.init.constant_(norm.up.weight, (logit / nn.functional.silu(torch.tensor(float(d)))).item())
    torch.testing.assert_close(norm(x)[1:], rescaled.double(), rtol=1e-6, atol=0)


def test_gradients_by_finite_differences() -> None:
    norm = random_norm(5, eps=1e-3)
    x = draw(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


def test_the_gate_is_taken_in_float32() -> None:
    """In bfloat16 σ(7) is 1, so that the gate would not shrink; in float32 the result rounds once, at its end."""
    norm = random_norm(32, eps=1e-6).to(torch.bfloat16)
    x = draw(9, 32, dtype=torch.bfloat16)
    y = RMSNorm.forward(norm, x)
    scores = norm.up(nn.functional.silu(norm.down(y)))
    assert torch.equal(norm(x), (scores.float().sigmoid() * y).bfloat16())


def test_norms_of_heads_have_no_gate() -> None:
    model = Decoder(
        ModelConfig.parse(
            {
                "depth": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "vocab_size": 11,
                "max_length": 8,
                "norm": {"name": "gated-norm", "rank": 4},
                "mixer": {"name": "softmax", "qk_norm": True},
            }
        )
    )
    gated = {name for name, module in model.named_modules() if isinstance(module, GatedNorm) and module.gated}
    assert gated == {"layers.0.mixer.input_norm", "layers.0.mlp.input_norm", "final_norm"}
    initialize(model, 0, 0.02)
    plain, x = RMSNorm(8), draw(3, 8, dtype=torch.float32)
    assert torch.equal(model.layers[0].mixer.branch.query_norm(x), plain(x))
    start = model.final_norm(draw(3, 16, dtype=torch.float32)) / RMSNorm(16)(draw(3, 16, dtype=torch.float32))
    torch.testing.assert_close(start, torch.full_like(start, 0.5), atol=0.01, rtol=0)
    added = sum(p.numel() for p in model.final_norm.parameters()) - 16
    assert added == 2 * 16 * 4
