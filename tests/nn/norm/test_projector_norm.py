from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.nn.norm import norms
from assay.nn.norm.projector_norm import SMALLEST_GAIN, ProjectorNorm, effective_rotation, rotation, text_norm


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gain(gain: Tensor, bias: Tensor | None = None, *, compensate: bool = True) -> ProjectorNorm:
    norm = ProjectorNorm(gain.numel(), compensate=compensate).to(gain.dtype)
    norm.weight.data.copy_(gain)
    if bias is not None:
        norm.bias.data.copy_(bias)
    return norm


def hooked(norm: ProjectorNorm, v: Tensor, towards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of v, g and b by torch's layer norm without affine part and a hook on its output."""
    v, gain, bias = (t.detach().clone().requires_grad_() for t in (v, norm.weight, norm.bias))
    hat = F.layer_norm(v, v.shape[-1:], eps=norm.eps)
    if norm.compensate:
        mean = sum(abs(value) for value in gain.tolist()) / gain.numel()
        hat.register_hook(lambda gradient: gradient / max(mean, 1e-3))
    (hat * gain + bias).backward(towards)
    return v.grad, gain.grad, bias.grad


def test_worked_gain() -> None:
    norm = norms.build("projector-norm", {"target_norm": 1.0}, hidden_size=4096)
    assert set(norm.weight.tolist()) == {0.015625}
    assert not norm.bias.any()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    target=st.floats(0.01, 100),
    hidden=st.integers(2, 40),
    scale=st.floats(0.1, 1e3),
    shift=st.floats(-10, 10),
)
def test_every_token_starts_with_the_text_s_norm(
    seed: int, target: float, hidden: int, scale: float, shift: float
) -> None:
    norm, v = ProjectorNorm(hidden, target_norm=target, eps=0.0).double(), draw(3, hidden, seed=seed)
    y = norm(v)
    torch.testing.assert_close(y.norm(dim=-1), torch.full((3,), target).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(y.sum(-1), torch.zeros(3).double(), rtol=0, atol=1e-7 * target * hidden)
    torch.testing.assert_close(norm(scale * v + shift), y, rtol=1e-6, atol=1e-6 * target)


def test_the_value_is_torch_s_layer_norm() -> None:
    norm = with_gain(draw(9), draw(9, seed=1))
    plain = nn.LayerNorm(9).double()
    plain.load_state_dict(norm.state_dict())
    v = 40 * draw(4, 9, seed=2)
    torch.testing.assert_close(norm(v), plain(v), rtol=1e-12, atol=1e-13)


def test_compensation_changes_no_bit_of_the_value_and_neither_gradient_of_its_own() -> None:
    gain, bias, v, towards = draw(9), draw(9, seed=1), 40 * draw(400, 9, seed=2), draw(400, 9, seed=3)
    results = []
    for compensate in (True, False):
        norm = with_gain(gain, bias, compensate=compensate)
        y = norm(v)
        y.backward(towards)
        results.append((y, norm.weight.grad, norm.bias.grad))
    assert all(torch.equal(with_it, without) for with_it, without in zip(*results, strict=True))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-5, 1e-2, 1.0, 30.0]), compensate=st.booleans())
def test_gradients_are_those_of_a_hook_on_the_normalised_tokens(seed: int, size: float, compensate: bool) -> None:
    norm = with_gain(size * draw(7, seed=seed), draw(7, seed=seed + 1), compensate=compensate)
    v, towards = draw(2, 3, 7, seed=seed + 2).requires_grad_(), draw(2, 3, 7, seed=seed + 3)
    norm(v).backward(towards)
    expected = hooked(norm, v, towards)
    for mine, theirs in zip((v.grad, norm.weight.grad, norm.bias.grad), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_worked_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "layer_norm", lambda v, *_, **__: v)
    hat = torch.zeros(4, requires_grad=True)
    with_gain(torch.tensor([0.01, 0.02, 0.01, 0.04]))(hat).backward(torch.ones(4))
    torch.testing.assert_close(hat.grad, torch.tensor([0.5, 1.0, 0.5, 2.0]))


@pytest.mark.parametrize("gain", [0.01, 0.5, 3.0])
def test_with_one_gain_for_all_the_gradient_upstream_is_that_of_a_norm_without_gain(gain: float) -> None:
    v, towards = draw(3, 8).requires_grad_(), draw(3, 8, seed=1)
    plain = draw(3, 8).requires_grad_()
    with_gain(torch.full((8,), gain).double())(v).backward(towards)
    nn.LayerNorm(8, elementwise_affine=False).double()(plain).backward(towards)
    torch.testing.assert_close(v.grad, plain.grad, rtol=1e-9, atol=1e-12)


def test_a_vanishing_gain_is_compensated_only_so_far() -> None:
    v, towards = draw(3, 8).requires_grad_(), draw(3, 8, seed=1)
    plain = draw(3, 8).requires_grad_()
    with_gain(torch.full((8,), SMALLEST_GAIN / 4, dtype=torch.float64))(v).backward(towards)
    nn.LayerNorm(8, elementwise_affine=False).double()(plain).backward(towards / 4)
    torch.testing.assert_close(v.grad, plain.grad, rtol=1e-9, atol=1e-12)


def test_without_a_target_it_starts_as_layer_norm() -> None:
    norm, plain = norms.build("projector-norm", hidden_size=6).double(), nn.LayerNorm(6).double()
    v, towards = draw(3, 6), draw(3, 6, seed=1)
    mine, theirs = v.clone().requires_grad_(), v.clone().requires_grad_()
    norm(mine).backward(towards)
    plain(theirs).backward(towards)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_low_precision_is_the_float32_result_rounded() -> None:
    norm = ProjectorNorm(64, target_norm=0.7)
    x = (30 * draw(5, 64)).to(torch.bfloat16)
    assert torch.equal(norm(x), norm(x.float()).to(torch.bfloat16))


def test_the_graph_is_one_that_compiles() -> None:
    norm = ProjectorNorm(8, target_norm=0.1)
    explained = torch._dynamo.explain(norm)(torch.randn(2, 8, requires_grad=True))
    assert explained.graph_break_count == 0


def test_text_norm_is_the_mean_length_of_rows_that_are_not_padding() -> None:
    table = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0], [1e-8, 0.0]])
    assert text_norm(table) == pytest.approx(3.5)
    assert text_norm(table.to(torch.bfloat16)) == pytest.approx(3.5)
    assert text_norm(table, smallest=2.0) == pytest.approx(5.0)
    with pytest.raises(UserError, match="no row that is not zero"):
        text_norm(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("norm", "size", "angle", "degrees"),
    [(10, 1, 90, 5.7106), (1, 1, 90, 45), (1, 1, 60, 30), (2, 1, 180, 0), (1, 2, 180, 180)],
)
def test_worked_rotations(norm: float, size: float, angle: float, degrees: float) -> None:
    found = effective_rotation(*(torch.tensor(float(x)) for x in (norm, size, math.radians(angle))))
    assert math.degrees(found.abs().item()) == pytest.approx(degrees, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.floats(1e-3, 1e3), hidden=st.integers(2, 9))
def test_the_formula_is_the_angle_between_before_and_after(seed: int, size: float, hidden: int) -> None:
    h, update = size * draw(5, hidden, seed=seed), draw(5, hidden, seed=seed + 1)
    between = torch.acos((F.normalize(h, dim=-1) * F.normalize(update, dim=-1)).sum(-1).clamp(-1, 1))
    expected = effective_rotation(h.norm(dim=-1), update.norm(dim=-1), between)
    torch.testing.assert_close(rotation(h, h + update), expected, rtol=1e-5, atol=1e-7)


def test_small_rotations_keep_their_digits() -> None:
    before = torch.tensor([1.0, 0.0])
    after = torch.tensor([1.0, 1e-5])
    assert rotation(before, after).item() == pytest.approx(1e-5, rel=1e-5)


@pytest.mark.parametrize("target", [0.0, -1.0])
def test_the_target_is_a_length(target: float) -> None:
    with pytest.raises(UserError, match="norm 'projector-norm', option target_norm="):
        norms.build("projector-norm", {"target_norm": target}, hidden_size=3)
