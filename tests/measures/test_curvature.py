import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.errors import UserError
from assay.measures.curvature import hessian, hessian_trace, largest_eigenvalue, sharpness


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quadratic(eigenvalues, seed=0):
    """A = Q diag(eigenvalues) Qᵀ, parameters at 0 in two tensors, and ½ wᵀAw."""
    size = len(eigenvalues)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator(seed), dtype=torch.float64)).Q
    matrix = turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T
    parameters = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((2,), (1, size - 2))]

    def loss():
        w = torch.cat([parameter.flatten() for parameter in parameters])
        return 0.5 * w @ matrix @ w

    return matrix, parameters, loss


@pytest.fixture(scope="module")
def net():
    """A small classifier, its loss, and its whole Hessian by torch.func."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]

    def from_vector(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        state = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return list(model.parameters()), lambda: F.cross_entropy(model(x), y), torch.func.hessian(from_vector)(flat)


def test_products_are_those_of_the_whole_hessian(net):
    parameters, loss, whole = net
    product = hessian(loss, parameters)
    for seed in range(3):
        vector = torch.randn(len(whole), generator=generator(seed), dtype=torch.float64)
        torch.testing.assert_close(product(vector), whole @ vector)


def test_the_trace_of_a_diagonal_hessian_needs_one_probe():
    w = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    estimate = hessian_trace(lambda: (w**4).sum(), [w], probes=1)
    assert estimate.mean == pytest.approx(12 * 14)
    assert math.isnan(estimate.error)


def test_the_trace_is_within_its_error(net):
    parameters, loss, whole = net
    estimate = hessian_trace(loss, parameters, probes=1000, generator=generator())
    assert abs(estimate.mean - whole.trace().item()) < 4 * estimate.error
    off = whole - torch.diag(whole.diag())
    assert estimate.error == pytest.approx(math.sqrt(2 * off.square().sum().item() / 1000), rel=0.15)


def test_the_largest_eigenvalue_of_a_quadratic_and_of_a_net(net):
    _, parameters, loss = quadratic([-9.0, 0.5, 1.0, 2.0, 7.0])
    found = largest_eigenvalue(loss, parameters, tolerance=1e-9, generator=generator())
    assert found.value == pytest.approx(7, abs=1e-7)
    parameters, loss, whole = net
    found = largest_eigenvalue(loss, parameters, tolerance=1e-6, generator=generator())
    top = torch.linalg.eigvalsh(whole)[-1].item()
    assert found.value == pytest.approx(top, rel=1e-6)


def test_the_residual_says_how_far_off_it_is(net):
    parameters, loss, whole = net
    found = largest_eigenvalue(loss, parameters, steps=4, generator=generator())
    assert (torch.linalg.eigvalsh(whole) - found.value).abs().min() <= found.residual


def test_sharpness_at_the_minimum_of_a_quadratic_is_half_the_top_eigenvalue():
    _, parameters, loss = quadratic([0.5, 1.0, 2.0, 7.0])
    assert sharpness(loss, parameters, 0.3, steps=60, generator=generator()) == pytest.approx(0.5 * 7 * 0.09)


def test_sharpness_off_the_minimum_is_that_of_the_trust_region():
    """max bᵀε + ½ εᵀAε over the sphere: ε = (μ − A)⁻¹b with μ above the top eigenvalue so that ‖ε‖ = ρ."""
    matrix, parameters, loss = quadratic([0.5, 1.0, 2.0, 7.0])
    b = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64)
    inside = lambda: loss() + b @ torch.cat([p.flatten() for p in parameters])  # noqa: E731
    eye, low, high = torch.eye(4, dtype=torch.float64), 7.0 + 1e-12, 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        step = torch.linalg.solve(middle * eye - matrix, b)
        low, high = (middle, high) if step.norm() > 0.3 else (low, middle)
    best = (b @ step + 0.5 * step @ matrix @ step).item()
    assert sharpness(inside, parameters, 0.3, steps=300) == pytest.approx(best, rel=1e-9)


def test_one_step_is_that_of_sam_and_parameters_come_back(net):
    parameters, loss, _ = net
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = torch.autograd.grad(loss(), parameters)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    with torch.no_grad():
        plain = loss().item()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter += 0.05 * gradient / norm
        raised = loss().item()
        for parameter, origin in zip(parameters, before, strict=True):
            parameter.copy_(origin)
    assert sharpness(loss, parameters, 0.05) == pytest.approx(raised - plain, rel=1e-9)
    assert sharpness(loss, parameters, 0.05, steps=20) >= raised - plain - 1e-12
    assert all(torch.equal(parameter, origin) for parameter, origin in zip(parameters, before, strict=True))


def test_a_parameter_that_is_not_used_changes_nothing(net):
    parameters, loss, _ = net
    more = [*parameters, torch.ones(3, dtype=torch.float64, requires_grad=True)]
    top = largest_eigenvalue(loss, parameters, tolerance=1e-6, generator=generator()).value
    assert largest_eigenvalue(loss, more, tolerance=1e-6, generator=generator()).value == pytest.approx(top, rel=1e-5)


def test_a_linear_loss_is_flat():
    w = torch.ones(4, requires_grad=True)
    assert hessian_trace(lambda: 3 * w.sum(), [w], probes=2).mean == 0
    assert largest_eigenvalue(lambda: 3 * w.sum(), [w]).value == 0


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda w: hessian_trace(lambda: w.sum(), []), "needs parameters"),
        (lambda w: hessian_trace(lambda: w.sum(), [w], probes=0), "at least 1"),
        (lambda w: hessian_trace(lambda: w, [w]), "finite number"),
        (lambda w: hessian_trace(lambda: w.sum() / 0, [w]), "finite number"),
        (lambda w: hessian_trace(lambda: torch.tensor(1.0), [w]), "depends on none"),
        (lambda w: hessian_trace(lambda: w.detach().clone().requires_grad_().sum(), [w]), "depends on none"),
        (lambda w: largest_eigenvalue(lambda: w.sum(), [w], steps=0), "at least 1"),
        (lambda w: sharpness(lambda: w.sum(), [w], -1.0), "must be positive"),
    ],
)
def test_what_cannot_be_measured_is_said(call, reason):
    with pytest.raises(UserError, match=reason):
        call(torch.ones(2, requires_grad=True))
