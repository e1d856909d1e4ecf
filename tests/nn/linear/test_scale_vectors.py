"""Linear maps with gains: folding, preconditioning, and what the optimizer does with each gain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.nn.linear import linears
from assay.nn.linear.scale_vectors import ScaledLinear
from assay.nn.scale_vector import ScaleVector
from assay.optim import build_optimizer, optimizers, parameter_groups
from assay.slots import Component

SIZES = {"depth": 2, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12, "vocab_size": 11, "max_length": 8}
IDS = torch.tensor([[1, 4, 2, 10, 0], [3, 3, 7, 5, 9]])
BRANCH_GAINS = {"name": "scale-vectors", "branch_gains": True}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled(gains: str, *, bias: bool = False, place: str = "input", **options: Any) -> nn.Linear:
    """5 → 3 features, everything random."""
    linear = nn.Linear(5, 3, bias=bias, dtype=torch.float64)
    made = linears.build("scale-vectors", {"gains": gains, **options}, linear=linear, place=place).double()
    for seed, parameter in enumerate(made.parameters(), start=1):
        parameter.data.copy_(draw(*parameter.shape, seed=seed))
    return made


def decoder(seed: int = 0, random_gains: bool = False, **fields: Any) -> Decoder:
    model = Decoder(ModelConfig.parse({**SIZES, **fields})).double()
    initialize(model, seed, 0.3)
    if random_gains:
        for index, (_, gain) in enumerate(gains_of(model)):
            for parameter in gain.parameters():
                parameter.data.copy_(1 + 0.3 * draw(*parameter.shape, seed=index))
    return model


def gains_of(model: nn.Module) -> Iterator[tuple[str, ScaleVector]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, ScaleVector))


def folded(model: Decoder) -> Decoder:
    """A plain decoder without norm gains before branches, whose matrices hold the gains."""
    plain = decoder(norm={"name": "rms-norm", "gain": False})
    state = {name: value for name, value in model.state_dict().items() if "gain" not in name}
    for name, module in model.named_modules():
        if isinstance(module, ScaledLinear):
            weight = module.weight * module.input_gain()
            if module.output_gain is not None:
                weight = weight * module.output_gain()[:, None]
            state[f"{name}.weight"] = weight
    state["head.projection.weight"] = model.head.projection.weight * model.final_norm.gain()
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("bias", [False, True])
def test_the_map_is_its_formula(bias: bool) -> None:
    x = draw(4, 5)
    for gains in ("input", "both", "both-normed"):
        made = scaled(gains, bias=bias)
        y = (x * made.input_gain()) @ made.weight.T
        if gains == "both-normed":
            y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        if gains != "input":
            y = y * made.output_gain()
        torch.testing.assert_close(made(x), y + made.bias if bias else y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", ["vector", "scalar*vector", "vector*vector"])
def test_both_gains_fold_into_the_matrix_as_a_rank_one_factor(form: str) -> None:
    made, x = scaled("both", bias=True, form=form), draw(4, 5)
    factor = torch.outer(made.output_gain(), made.input_gain())
    assert torch.linalg.matrix_rank(factor) == 1
    torch.testing.assert_close(made(x), x @ (made.weight * factor).T + made.bias, rtol=1e-12, atol=1e-14)


def test_with_a_norm_between_the_size_of_the_matrix_does_not_matter() -> None:
    made, x = scaled("both-normed", eps=0.0), draw(4, 5)
    y = made(x)
    (y * draw(4, 3, seed=9)).sum().backward()
    size = made.weight.norm() * made.weight.grad.norm()
    assert size > 1e-2
    assert ((made.weight * made.weight.grad).sum() / size).abs() < 1e-12
    made.weight.data *= 37.0
    torch.testing.assert_close(made(x), y)
    made.output_gain.weight.data.fill_(1.0)
    torch.testing.assert_close(made(x).square().mean(-1), torch.ones(4, dtype=torch.float64))


def test_gains_on_both_sides_precondition_rows_and_columns() -> None:
    """One small step on W, g_out and g_in moves U = W ⊙ (g_out g_inᵀ) by the sum of three terms and keeps
    |row i|² − g_out,i² and |column j|² − g_in,j²."""
    made, x, towards, lr = scaled("both"), draw(6, 5), draw(6, 3, seed=7), 1e-7
    out, weight, into = (p.detach().clone() for p in (made.output_gain.weight, made.weight, made.input_gain.weight))

    def effective() -> Tensor:
        return (made.output_gain()[:, None] * made.weight * made.input_gain()).detach()

    def conserved() -> Tensor:
        squares = made.weight.detach().square()
        rows = squares.sum(1) - made.output_gain.weight.detach().square()
        return torch.cat([rows, squares.sum(0) - made.input_gain.weight.detach().square()])

    before, kept = effective(), conserved()
    (made(x) * towards).sum().backward()
    torch.optim.SGD(made.parameters(), lr=lr).step()
    gradient = towards.T @ x
    rows = (weight * into * gradient).sum(1, keepdim=True)
    columns = (out[:, None] * weight * gradient).sum(0)
    moved = out[:, None] ** 2 * gradient * into**2 + weight * into * rows + out[:, None] * weight * columns
    torch.testing.assert_close((effective() - before) / lr, -moved, rtol=1e-4, atol=1e-4)
    assert (conserved() - kept).abs().max() < 1e-9


def test_only_maps_that_read_the_layers_input_have_gains_of_their_own() -> None:
    linear = nn.Linear(5, 3)
    assert linears.build("scale-vectors", {"gains": "input"}, linear=linear, place="inner") is linear
    model = decoder(linear={"name": "scale-vectors", "gains": "input"}, mixer="gated-attention")
    having = {name.removesuffix(".input_gain") for name, _ in gains_of(model.layers[1])}
    readers = ("mixer.branch.query", "mixer.branch.key", "mixer.branch.value", "mixer.branch.gate_projection")
    assert having == {*readers, "mlp.branch.gate", "mlp.branch.up"}
    both = decoder(linear="scale-vectors")
    assert len(list(gains_of(both.layers[1]))) == 2 * 7


@pytest.mark.parametrize(("name", "options"), [("plain", {}), ("scale-vectors", {"gains": "both"})])
def test_the_weight_and_bias_stay_those_of_the_map(name: str, options: dict[str, str]) -> None:
    linear = nn.Linear(5, 3)
    made = linears.build(name, options, linear=linear, place="input")
    assert made.weight is linear.weight
    assert made.bias is linear.bias


def test_a_mixer_that_does_not_list_its_input_maps() -> None:
    linear = nn.Linear(5, 3)
    with pytest.raises(UserError, match="does not list its input_maps"):
        linears.build("scale-vectors", {"gains": "input"}, linear=linear, place="unknown")
    assert isinstance(linears.build("scale-vectors", {"gains": "both"}, linear=linear, place="unknown"), ScaledLinear)


@pytest.mark.parametrize("gains", ["input", "both"])
@pytest.mark.parametrize("form", ["vector", "scalar*vector", "vector*vector"])
def test_at_the_start_it_is_the_baseline_bit_for_bit(gains: str, form: str) -> None:
    linear = {"name": "scale-vectors", "gains": gains, "form": form}
    assert torch.equal(decoder(norm=BRANCH_GAINS, linear=linear)(IDS), decoder()(IDS))


def test_a_norm_between_changes_the_network_at_the_start() -> None:
    assert (decoder(norm=BRANCH_GAINS, linear="scale-vectors")(IDS) - decoder()(IDS)).abs().max() > 1e-3


@pytest.mark.parametrize("gains", ["input", "both"])
def test_a_whole_network_folds(gains: str) -> None:
    linear = {"name": "scale-vectors", "gains": gains, "form": "scalar*vector"}
    model = decoder(norm=BRANCH_GAINS, linear=linear, random_gains=True)
    logits = model(IDS)
    assert (logits - decoder()(IDS)).abs().max() > 1e-2
    torch.testing.assert_close(folded(model)(IDS), logits, rtol=1e-10, atol=1e-12)


def test_equal_branch_gains_are_the_shared_gain_and_share_its_gradient() -> None:
    shared = decoder(seed=1)
    for index, layer in enumerate(shared.layers):
        for half in (layer.mixer, layer.mlp):
            half.input_norm.weight.data.copy_(1 + 0.3 * draw(8, seed=index))
    split = decoder(seed=1, norm=BRANCH_GAINS, linear={"name": "scale-vectors", "gains": "input"})
    for index, layer in enumerate(split.layers):
        for _, gain in gains_of(layer):
            gain.weight.data.copy_(1 + 0.3 * draw(8, seed=index))
    logits = shared(IDS)
    torch.testing.assert_close(split(IDS), logits, rtol=1e-12, atol=1e-12)
    logits.square().sum().backward()
    split(IDS).square().sum().backward()
    for one, other in zip(shared.layers, split.layers, strict=True):
        for half, apart in ((one.mixer, other.mixer), (one.mlp, other.mlp)):
            total = sum(gain.weight.grad for _, gain in gains_of(apart))
            torch.testing.assert_close(total, half.input_norm.weight.grad, rtol=1e-9, atol=1e-11)


def test_matrices_start_as_those_of_the_baseline_and_keep_their_role() -> None:
    plain, model = decoder(), decoder(norm=BRANCH_GAINS, linear="scale-vectors")
    mine = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.ndim == 2:
            assert torch.equal(mine[name], parameter)
    roles = {id(p): group["role"] for group in parameter_groups(model) for p in group["params"]}
    assert {roles[id(p)] for name, p in mine.items() if "gain" in name} == {"vector"}
    matrices = {id(p) for name, p in mine.items() if p.ndim == 2 and name.startswith("layers.")}
    assert {key for key, role in roles.items() if role == "matrix"} == matrices


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("decay", "decayed"),
    [("input", {"input_gain"}), ("all", {"input_gain", "output_gain"}), ("none", set())],
)
def test_decay_of_a_gain_without_gradient(name: str, decay: str, decayed: set[str]) -> None:
    """After n steps a decayed gain is (1 − ηλ)ⁿ and another one is still 1."""
    model = nn.ModuleDict({"map": scaled("both-normed", decay=decay, form="scalar*vector")})
    for _, gain in gains_of(model):
        for parameter in gain.parameters():
            parameter.data.fill_(1.0)
    options = {"lr": 0.1, "weight_decay": 0.5}
    optimizer = build_optimizer(Component.parse(optimizers, {"name": name, **options}), model, lr=0.0)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for path, gain in gains_of(model):
        expected = 0.95**3 if path.rpartition(".")[2] in decayed else 1.0
        for parameter in gain.parameters():
            torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))


def test_a_cache_gives_what_a_whole_pass_gives() -> None:
    from transformers import DynamicCache

    model = decoder(norm=BRANCH_GAINS, linear="scale-vectors", random_gains=True).eval()
    whole, cache, steps = model(IDS), DynamicCache(), []
    for place in range(IDS.shape[1]):
        mask = torch.ones(1, 1, 1, place + 1, dtype=torch.bool)
        steps.append(model(IDS[:, place : place + 1], position_ids=torch.tensor([[place]]), mask=mask, cache=cache))
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-6)
