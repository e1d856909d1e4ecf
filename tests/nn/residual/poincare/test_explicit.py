from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.nn.residual.poincare import ball, explicit

CURVATURES = [0.1, 1.0, 2.5]
MAPS = [(explicit.exp0, ball.exp0), (explicit.log0, ball.log0)]


def points(*shape: int, c: float, seed: int = 0, radius: float = 0.9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    share = torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64)
    return (x / x.norm(dim=-1, keepdim=True) * radius * share / c**0.5).requires_grad_()


@pytest.mark.parametrize("c", CURVATURES)
def test_gradients_by_finite_differences(c: float) -> None:
    x, y, one = points(4, 3, c=c), points(4, 3, c=c, seed=1), points(3, c=c, seed=2)
    for explicit_map, _ in MAPS:
        assert torch.autograd.gradcheck(lambda v, f=explicit_map: f(v, c), x)
    assert torch.autograd.gradcheck(lambda x, y: explicit.mobius_add(x, y, c), (x, y))
    assert torch.autograd.gradcheck(lambda x, y: explicit.mobius_add(x, y, c), (one, x)), "broadcast"


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 30.0])
def test_gradients_are_those_of_the_plain_maps(c: float, scale: float) -> None:
    """Near the origin, and beyond the margin, where the length of the result is held."""
    towards = torch.randn(6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x, y = (points(6, 4, c=c, seed=seed) for seed in (0, 1))
    for explicit_map, plain_map in MAPS:
        far = (scale * x.detach()).requires_grad_()
        ours, theirs = explicit_map(far, c), plain_map(far, c)
        assert torch.equal(ours, theirs)
        (mine,), (other,) = (torch.autograd.grad(z, far, towards) for z in (ours, theirs))
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
    ours, theirs = explicit.mobius_add(x, y, c), ball.mobius_add(x, y, c)
    for mine, other in zip(*(torch.autograd.grad(z, (x, y), towards) for z in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def kept(y: Tensor) -> int:
    """The number of maps that autograd has recorded behind ``y``."""
    seen, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return sum("AccumulateGrad" not in type(node).__name__ for node in seen)


def test_each_map_is_one_step_of_the_graph() -> None:
    x, y = points(5, 3, c=1.0), points(5, 3, c=1.0, seed=1)
    assert kept(explicit.mobius_add(x, y, 1.0)) == kept(explicit.exp0(x, 1.0)) == kept(explicit.log0(x, 1.0)) == 1
    assert kept(ball.mobius_add(x, y, 1.0)) > 10


def test_only_inputs_are_kept() -> None:
    x, y = points(5, 3, c=1.0), points(5, 3, c=1.0, seed=1)
    storages: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: storages.append(t.data_ptr()) or t, lambda t: t):
        explicit.mobius_add(x, y, 1.0)
        explicit.exp0(x, 1.0)
        explicit.log0(y, 1.0)
    assert set(storages) == {x.data_ptr(), y.data_ptr()}
