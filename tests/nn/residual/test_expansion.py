from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.nn.residual.expansion import expansion
from assay.nn.residual.scaled import ScaledResidual


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(count: int, size: int = 4) -> list[Callable[[Tensor], Tensor]]:
    weights = [draw(size, size, seed=i + 1) for i in range(count)]
    return [lambda h, weight=weight: torch.tanh(h @ weight) for weight in weights]


def tower(branches: list[Callable[[Tensor], Tensor]], x: Tensor, scale: float) -> Tensor:
    stream = ScaledResidual(x.shape[-1], len(branches), branch=scale)
    state = stream.start(x)
    for index, branch in enumerate(branches):
        state = stream.write(state, branch(stream.read(state, index)), index)
    return stream.finish(state)


def test_linear_branches_give_the_binomial_theorem() -> None:
    """(1 + λA)^n = Σ_j (n over j) λ^j A^j."""
    matrix, x = draw(3, 3) / 3, draw(2, 3, seed=1)
    terms = expansion([lambda h: h @ matrix.T] * 5, x, 6)
    for j, term in enumerate(terms):
        expected = math.comb(5, j) * x @ torch.linalg.matrix_power(matrix, j).T
        torch.testing.assert_close(term, expected, rtol=1e-9, atol=1e-9)


def test_the_first_two_orders_are_sums_over_branches_and_pairs() -> None:
    branches, x = smooth(5), draw(4)
    _, first, second = expansion(branches, x, 2)
    torch.testing.assert_close(first, sum(f(x) for f in branches))
    jacobians = [torch.autograd.functional.jacobian(f, x) for f in branches]
    pairs = sum(jacobians[k] @ branches[i](x) for k in range(5) for i in range(k))
    torch.testing.assert_close(second, pairs)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_what_is_left_out_is_of_the_next_order(order: int) -> None:
    """Halving λ divides the error by 2^(order + 1)."""
    branches, x = smooth(5), draw(4)
    terms = expansion(branches, x, order)

    def error(scale: float) -> float:
        short = sum(scale**j * term for j, term in enumerate(terms))
        return float((tower(branches, x, scale) - short).norm())

    assert error(0.01) / error(0.005) == pytest.approx(2 ** (order + 1), rel=0.05)


def test_switching_one_branch_off_removes_its_paths() -> None:
    """Inclusion and exclusion: what only the pair (i, k) gives is its path, up to third order."""
    branches, x, scale = smooth(3), draw(4), 1e-3
    first, last = branches[0], branches[2]
    both = tower([first, last], x, scale) - tower([first], x, scale) - tower([last], x, scale) + x
    path = torch.autograd.functional.jacobian(last, x) @ first(x)
    torch.testing.assert_close(both / scale**2, path, rtol=1e-2, atol=1e-2)


def test_order_matters_only_from_the_second_order_on() -> None:
    branches, x = smooth(4), draw(4)
    ours, theirs = (expansion(tower, x, 2) for tower in (branches, branches[::-1]))
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])
    assert not torch.allclose(ours[2], theirs[2])


def test_the_growth_law_of_independent_linear_branches() -> None:
    """E‖x_n‖² = (1 + λ²)^n ‖x‖²: 2^n without a scale, less than e with 1/√n, nearly 1 with 1/n."""
    n, size = 32, 256
    weights = [draw(size, size, seed=seed) / size**0.5 for seed in range(n)]
    branches = [lambda h, weight=weight: h @ weight for weight in weights]
    x = draw(8, size, seed=n)
    for scale in (1.0, n**-0.5, 1 / n):
        grown = tower(branches, x, scale).square().sum() / x.square().sum()
        assert float(grown.log()) == pytest.approx(n * math.log1p(scale**2), abs=0.3)


def test_one_over_n_tends_to_the_exponential() -> None:
    x = torch.ones(1, dtype=torch.float64)
    assert float(tower([lambda h: h] * 100, x, 1 / 100)) == pytest.approx(2.70481, abs=1e-5)
    nilpotent = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    for n in (1, 7, 50):
        result = tower([lambda h: h @ nilpotent] * n, draw(2), 1 / n)
        torch.testing.assert_close(result, draw(2) @ (torch.eye(2, dtype=torch.float64) + nilpotent))


def test_of_a_decoder_without_norms() -> None:
    """The expansion over its sublayers' branches: halving λ divides what second order leaves out by eight."""
    config = {"depth": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 31, "max_length": 8, "norm": "none"}
    ids, errors = torch.arange(8)[None], []
    for scale in (0.01, 0.005):
        residual = {"name": "scaled", "branch": scale}
        decoder = Decoder(ModelConfig.parse({**config, "residual": residual})).double().eval()
        for index, parameter in enumerate(decoder.parameters()):
            nn.init.normal_(parameter, 0.0, 0.3, generator=torch.Generator().manual_seed(index))
        state, positions = decoder.begin(ids)
        branches: list[Callable[[Tensor], Tensor]] = []
        for layer in decoder.layers:
            branches += [functools.partial(layer.mixer.branch, positions=positions), layer.mlp.branch]
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            terms = expansion(branches, state, 2)
        short = sum(scale**j * term for j, term in enumerate(terms))
        errors.append(float((decoder.hidden(ids) - short).detach().norm()))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.05)


def test_an_order_below_zero() -> None:
    with pytest.raises(UserError, match="order=-1"):
        expansion(smooth(2), draw(4), -1)
