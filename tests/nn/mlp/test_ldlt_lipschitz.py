from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.nn.mlp import mlps
from assay.nn.mlp.ldlt_lipschitz import ACTIVATIONS, SMALLEST, LDLTBlock, LDLTLipschitz, contraction
from assay.training.flops import flops_per_token


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(
    sizes: tuple[int, ...] = (3, 5, 4), gain: float = 1.0, lipschitz: float = 1.0, seed: int = 0, **options: Any
) -> LDLTBlock:
    """A block of float64 with free matrices of that size; ``sizes`` are in, inner widths and out."""
    block = LDLTBlock(sizes[0], sizes[-1], sizes[1:-1], lipschitz=lipschitz, **options).double()
    for index, (name, parameter) in enumerate(block.named_parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed + index) * (1 if name == "log_a" else gain))
    return block


def certificate(skip: Tensor, inner: list[Tensor], outer: Tensor, lipschitz: float) -> Tensor:
    """The matrix of the quadratic form L²‖x‖² − ‖Ax + Bw_l‖² + Σ_k 2⟨w_k, w_k − C_k w_{k−1}⟩, entry by entry.

    Every w_k is a selection of rows of one long vector; nothing of the factorisation is used.
    """
    sizes = [skip.shape[1], *(c.shape[0] for c in inner)]
    rows = torch.eye(sum(sizes), dtype=skip.dtype).split(sizes)
    y = skip @ rows[0] + outer @ rows[-1]
    form = lipschitz**2 * rows[0].T @ rows[0] - y.T @ y
    for c, before, after in zip(inner, rows[:-1], rows[1:], strict=True):
        form = form + 2 * after.T @ (after - c @ before)
    return (form + form.T) / 2


def gain(block: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    return (block(x) - block(other)).norm(dim=-1) / (x - other).norm(dim=-1)


SHAPES = st.lists(st.integers(1, 6), min_size=3, max_size=7).map(tuple)


@settings(max_examples=60, deadline=None)
@given(sizes=SHAPES, size=st.floats(0.05, 3), lipschitz=st.floats(0.2, 5), seed=st.integers(0, 2**31))
def test_certifying_matrix_is_positive_definite(
    sizes: tuple[int, ...], size: float, lipschitz: float, seed: int
) -> None:
    block = make(sizes, size, lipschitz, seed)
    form = certificate(*block.maps(), lipschitz)
    assert torch.linalg.eigvalsh(form).min() > -1e-9


@settings(max_examples=30, deadline=None)
@given(sizes=SHAPES, size=st.floats(0.05, 3), lipschitz=st.floats(0.2, 5), seed=st.integers(0, 2**31))
def test_no_pattern_of_slopes_exceeds_the_constant(
    sizes: tuple[int, ...], size: float, lipschitz: float, seed: int
) -> None:
    """‖A + B J_l C_l ... J_1 C_1‖ ≤ L for diagonal J_k of entries 0 .. 1, as many slopes as there are inputs."""
    skip, inner, outer = make(sizes, size, lipschitz, seed).maps()
    for trial in range(8):
        chain = torch.eye(sizes[0], dtype=torch.float64)
        for k, c in enumerate(inner):
            slopes = draw(c.shape[0], seed=seed + 10 * trial + k).sigmoid()
            chain = (slopes if trial % 2 else slopes.round())[:, None] * (c @ chain)
        assert torch.linalg.matrix_norm(skip + outer @ chain, 2) <= lipschitz * (1 + 1e-9)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("sizes", [(4, 9, 3), (6, 5, 8, 6), (2, 3, 3, 3, 5)])
def test_no_pair_of_inputs_exceeds_the_constant(activation: str, sizes: tuple[int, ...]) -> None:
    """Random pairs near and far, and pairs moved apart by gradient ascent on their ratio."""
    block = make(sizes, 2.0, lipschitz=0.7, activation=activation)
    for distance in (1e-3, 1.0, 30.0):
        x, step = draw(4000, sizes[0], seed=3), draw(4000, sizes[0], seed=4)
        assert gain(block, 5 * x, 5 * x + distance * step).max() <= 0.7 * (1 + 1e-9)
    x, other = (draw(64, sizes[0], seed=seed).requires_grad_() for seed in (5, 6))
    adversary = torch.optim.Adam([x, other], lr=0.1)
    start = gain(block, x, other).max().item()
    for _ in range(60):
        adversary.zero_grad()
        (-gain(block, x, other).log().sum()).backward()
        adversary.step()
    found = gain(block, x, other).max().item()
    assert start < found <= 0.7 * (1 + 1e-9)


def test_power_iteration_on_the_jacobian_comes_close_but_not_past() -> None:
    """The largest slope over a few hundred inputs is nearly the constant of a block with large free matrices."""
    block = make((6, 16, 6), 10.0)
    x = draw(300, 6, seed=1)
    v = draw(300, 6, seed=2)
    for _ in range(50):
        _, pushed = torch.func.jvp(block, (x,), (v / v.norm(dim=-1, keepdim=True),))
        _, pull = torch.func.vjp(block, x)
        (v,) = pull(pushed)
    largest = pushed.norm(dim=-1).max().item()
    exact = torch.linalg.matrix_norm(torch.func.vmap(torch.func.jacrev(block))(x), 2).max().item()
    assert largest == pytest.approx(exact, rel=1e-3)
    assert 0.99 < largest <= 1 + 1e-9


def by_value(skip: float, inner: float, outer: float, a: float = 1.0) -> LDLTBlock:
    """A scalar block whose contractions are these numbers."""
    block = LDLTBlock(1, 1, [1], bias=False).double()
    for layer, k in zip((block.skip, block.inner[0], block.outer), (skip, inner, outer), strict=True):
        torch.nn.init.constant_(layer.weight, k * math.sqrt(a / (1 - k * k)))
    torch.nn.init.constant_(block.log_a, math.log(a - SMALLEST))
    return block


def test_worked_numbers() -> None:
    """A = 0.6 and B = 0.5: D_0 = 0.64, D_1 before C is 1.75, and C follows from K = 0.8."""
    a, (c,), b = by_value(0.6, 0.8, 0.5 / math.sqrt(2)).maps()
    assert (a.item(), b.item()) == pytest.approx((0.6, 0.5))
    assert c.item() == pytest.approx(0.546640, abs=5e-7)
    assert (a + b * c).item() == pytest.approx(0.873320, abs=5e-7)
    form = certificate(a, [c], b, 1.0)
    torch.testing.assert_close(form.diag(), torch.tensor([0.64, 1.75], dtype=torch.float64))
    assert form[0, 1].item() == pytest.approx(-0.846640, abs=5e-7)
    assert torch.linalg.det(form).item() == pytest.approx(0.4032)


@pytest.mark.parametrize(("k", "expected"), [(1 - 1e-12, 0.758301), (-(1 - 1e-12), -1.358301)])
def test_worked_numbers_at_the_border(k: float, expected: float) -> None:
    a, (c,), b = by_value(0.6, k, 0.5 / math.sqrt(2)).maps()
    assert c.item() == pytest.approx(expected, abs=2e-6)
    assert torch.linalg.det(certificate(a, [c], b, 1.0)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_contraction_shrinks_singular_values(shape: tuple[int, int]) -> None:
    free, a = draw(*shape), torch.tensor(0.3, dtype=torch.float64)
    contracted, factor = contraction(free, a)
    before, after = torch.linalg.svdvals(free), torch.linalg.svdvals(contracted)
    torch.testing.assert_close(after, before / (before.square() + a).sqrt())
    identity = torch.eye(shape[1], dtype=torch.float64)
    torch.testing.assert_close(factor.T @ factor, free.T @ free + a * identity)
    torch.testing.assert_close(identity - contracted.T @ contracted, a * torch.linalg.inv(factor @ factor.T))


def free_for(contracted: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """V with K(V) = ``contracted``, and its R: RRᵀ = a (I − KᵀK)⁻¹ with R upper triangular."""
    identity = torch.eye(contracted.shape[1], dtype=contracted.dtype)
    target = a * torch.linalg.inv(identity - contracted.T @ contracted)
    factor = torch.linalg.cholesky(target.flip(0, 1)).flip(0, 1)
    return contracted @ factor, factor


@pytest.mark.parametrize("sizes", [(3, 5, 4), (4, 2, 2), (1, 1, 1), (3, 4, 2, 5), (2, 6, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_reaches_every_block_with_a_certificate(sizes: tuple[int, ...], seed: int) -> None:
    """Arbitrary A, B and C; the smallest L that certifies them by eigenvalues; then V from the pivots."""
    skip, outer = draw(sizes[-1], sizes[0], seed=seed), draw(sizes[-1], sizes[-2], seed=seed + 1)
    outer = outer / torch.linalg.matrix_norm(outer, 2)
    inner = [draw(n, m, seed=seed + 2 + k) / (n + m) for k, (m, n) in enumerate(itertools.pairwise(sizes[:-1]))]
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        positive = torch.linalg.eigvalsh(certificate(skip, inner, outer, middle)).min() > 0
        low, high = (low, middle) if positive else (middle, high)
    limit = 1.001 * high

    block = LDLTBlock(sizes[0], sizes[-1], sizes[1:-1], lipschitz=limit, bias=False).double()
    a = 1 + SMALLEST
    free, factor = free_for(skip / limit, a)
    block.skip.weight.data.copy_(free)
    pivot = limit**2 * torch.eye(sizes[0], dtype=torch.float64) - skip.T @ skip
    root = factor / (limit * math.sqrt(a))
    torch.testing.assert_close(root @ root.T, torch.linalg.inv(pivot))
    chain = torch.eye(sizes[0], dtype=torch.float64)
    spread = torch.eye(sizes[-1], dtype=torch.float64)
    for layer, c in zip(block.inner[:-1], inner[:-1], strict=True):
        inverse = torch.linalg.inv(pivot)
        contracted = c @ root / math.sqrt(2)
        assert torch.linalg.matrix_norm(contracted, 2) < 1
        layer.weight.data.copy_(free_for(contracted, a)[0])
        spread = spread + skip @ chain @ inverse @ chain.T @ skip.T
        chain = chain @ inverse @ c.T
        pivot = 2 * torch.eye(len(c), dtype=torch.float64) - c @ inverse @ c.T
        root = torch.linalg.cholesky(torch.linalg.inv(pivot))
    contracted = torch.linalg.cholesky(spread, upper=True) @ outer / math.sqrt(2)
    free, factor = free_for(contracted, a)
    block.outer.weight.data.copy_(free)
    contracted = factor.T @ (inner[-1] + outer.T @ skip @ chain) @ root / math.sqrt(2 * a)
    assert torch.linalg.matrix_norm(contracted, 2) < 1
    block.inner[-1].weight.data.copy_(free_for(contracted, a)[0])

    found_skip, found_inner, found_outer = block.maps()
    torch.testing.assert_close(found_skip, skip, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found_outer, outer, rtol=1e-8, atol=1e-9)
    for found, c in zip(found_inner, inner, strict=True):
        torch.testing.assert_close(found, c, rtol=1e-8, atol=1e-9)


def test_with_an_orthogonal_skip_it_is_the_convex_potential_layer() -> None:
    """A → I leaves no choice: C = −Bᵀ with ‖B‖² ≤ 2, the layer x − B φ(Bᵀx) of Meunier et al. and SLL."""
    block = make((4, 6, 4))
    block.skip.weight.data.copy_(1e7 * torch.eye(4))
    block.log_a.data.zero_()
    block.skip.bias.data.zero_()
    _, _, b = block.maps()
    assert 0.5 < torch.linalg.matrix_norm(b, 2).square() < 2
    x = draw(50, 4, seed=7)
    expected = x + torch.relu(-x @ b + block.inner[0].bias) @ b.T
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(3, 5, 4), (3, 5, 2, 4)])
def test_without_an_outer_map_it_is_linear_and_without_a_skip_it_is_feed_forward(sizes: tuple[int, ...]) -> None:
    x = draw(20, 3, seed=9)
    block = make(sizes)
    block.outer.weight.data.zero_()
    a, _, _ = block.maps()
    torch.testing.assert_close(block(x), x @ a.T + block.skip.bias)
    block = make(sizes)
    block.skip.weight.data.zero_()
    a, inner, b = block.maps()
    assert not a.any()
    w = x
    for c, layer in zip(inner, block.inner, strict=True):
        w = torch.relu(w @ c.T + layer.bias)
    torch.testing.assert_close(block(x), w @ b.T + block.skip.bias)


def test_gradients_by_finite_differences() -> None:
    block = make((2, 3, 2, 2))
    x = draw(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *block.parameters()))


@pytest.mark.parametrize("size", [0.02, 0.3, 3.0])
def test_holds_in_float32_up_to_rounding(size: float) -> None:
    block = make((16, 48, 32, 16), size).float()
    assert torch.linalg.eigvalsh(certificate(*(m for m in block.double().maps()), 1.0)).min() > -1e-9
    skip, inner, outer = block.float().maps()
    form = certificate(skip.double(), [c.double() for c in inner], outer.double(), 1 + 1e-5)
    assert torch.linalg.eigvalsh(form).min() > 0
    x = draw(2000, 16).float()
    assert gain(block, x[:1000], x[1000:]).max() <= 1 + 1e-5


def test_matrices_of_rank_one_are_no_obstacle_in_float32() -> None:
    block = LDLTBlock(8, 8, [1024])
    for layer in (block.skip, block.inner[0], block.outer):
        torch.nn.init.constant_(layer.weight, 30.0)
    skip, (c,), outer = block.maps()
    assert torch.linalg.matrix_norm(skip, 2) <= 1 + 1e-5
    assert torch.linalg.matrix_norm(outer, 2) <= math.sqrt(2) * (1 + 1e-5)
    assert torch.linalg.matrix_norm(skip + outer @ c, 2) <= 1 + 1e-5


def test_weights_that_are_not_numbers_give_an_output_that_is_none() -> None:
    block = make((3, 5, 3))
    block.inner[0].weight.data[0, 0] = torch.nan
    assert not block(draw(2, 3)).isfinite().any()


def test_maps_are_computed_in_float32_under_autocast() -> None:
    block, x = make((6, 9, 6)).float(), draw(5, 6).float()
    expected = block.maps()[2]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.maps()[2], expected)
        y = block(x)
    torch.testing.assert_close(y.float(), block(x), rtol=0.05, atol=0.05)


def test_usual_expansion_costs_what_swiglu_costs() -> None:
    hidden = 48
    ours = LDLTLipschitz(hidden, round(LDLTLipschitz.expansion * hidden))
    theirs = mlps.build("swiglu", hidden_size=hidden, intermediate_size=round(8 / 3 * hidden))
    count = [sum(p.numel() for p in module.parameters() if p.ndim > 1) for module in (ours, theirs)]
    assert count[0] == count[1]


def test_in_a_decoder_each_branch_keeps_its_constant() -> None:
    config = ModelConfig.parse(
        {
            "depth": 2,
            "hidden_size": 32,
            "vocab_size": 17,
            "max_length": 8,
            "mlp": {"name": "ldlt-lipschitz", "lipschitz": 0.5, "num_layers": 2},
            "linear": "scale-vectors",
        }
    )
    decoder = Decoder(config)
    initialize(decoder, seed=0, std=1.0)
    branch = decoder.layers[1].mlp.branch
    seen: list[Tensor] = []
    branch.register_forward_hook(lambda module, inputs, y: seen.extend([inputs[0], y]))
    logits = decoder(torch.arange(16).view(2, 8))
    x, y = (t.detach().flatten(0, 1) for t in seen)
    slopes = torch.cdist(y, y)[0, 1:] / torch.cdist(x, x)[0, 1:]
    assert 0.05 < slopes.max() <= 0.5
    logits.square().mean().backward()
    for name, parameter in branch.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert flops_per_token(config, 8) > 0


@pytest.mark.parametrize("option", [{"lipschitz": 0}, {"num_layers": 0}, {"activation": "gelu"}])
def test_wrong_options(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(UserError, match=f"mlp 'ldlt-lipschitz', option {name}="):
        mlps.build("ldlt-lipschitz", option, hidden_size=4, intermediate_size=8)
