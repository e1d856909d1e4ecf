from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from assay.analysis.linear_mode_connectivity import connectivity, fork_angle, layer_of
from assay.cli import main
from assay.errors import UserError


class Point(nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def quadratic(module, batch):
    return 0.5 * (batch * module.t.square()).sum()


def double_well(module, batch):
    return (module.t.square() - 1).square().sum()


def cross_entropy(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1])


def multilayer(seed, *, norm=False):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 6),
        *([nn.BatchNorm1d(6)] if norm else []),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).double()


def batch(seed=0, count=30):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator).double(), torch.randint(0, 3, (count,), generator=generator)


def test_of_a_quadratic_by_hand():
    """H = diag(1, 4) from (1, 0) to (0, 1): dᵀHd = 5, so B(α) = −½ α (1 − α) 5, which B̂ gets exactly."""
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)
    found = connectivity(Point(1.0, 0.0), Point(0.0, 1.0), quadratic, [curvature], points=5, predict=True)
    assert found.line.barriers == pytest.approx((0, -0.46875, -0.625, -0.46875, 0))
    assert found.line.barrier == 0
    assert found.predicted == pytest.approx(-0.625)
    assert found.distance == pytest.approx(2**0.5)


def test_of_a_double_well_by_hand():
    """(t² − 1)² between its minima: B(½) = 1 and B(¼) = 0.5625; H = 8 at both, so B̂(½) = (32 + 32) / 16."""
    found = connectivity(Point(-1.0), Point(1.0), double_well, [None], points=5, predict=True)
    assert found.line.barriers == pytest.approx((0, 0.5625, 1, 0.5625, 0))
    assert found.predicted == pytest.approx(4)
    (layer,) = found.layers
    assert layer.from_first.barrier == layer.from_second.barrier == pytest.approx(1)
    assert layer.predicted == pytest.approx(4)


def test_of_a_network_with_itself_is_zero_and_the_line_back_is_the_line_reversed():
    first, second = multilayer(0), multilayer(1)
    same = connectivity(first, copy.deepcopy(first), cross_entropy, [batch()], predict=True)
    assert same.line.barriers == pytest.approx([0] * 11, abs=1e-15)
    assert (same.predicted, same.distance) == (0, 0)
    there = connectivity(first, second, cross_entropy, [batch()], predict=True)
    back = connectivity(second, first, cross_entropy, [batch()], predict=True)
    assert there.line.losses == pytest.approx(back.line.losses[::-1])
    assert there.predicted == pytest.approx(back.predicted)
    for one, other in zip(there.layers, back.layers, strict=True):
        assert one.from_first.losses == pytest.approx(other.from_second.losses)


def test_a_permutation_of_hidden_units_keeps_the_loss_and_makes_a_barrier():
    first = multilayer(0)
    second = copy.deepcopy(first)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    for name, index in (("0.weight", order), ("0.bias", order), ("2.weight", (slice(None), order))):
        second.get_parameter(name).data = first.get_parameter(name).data[index]
    found = connectivity(first, second, cross_entropy, [batch()])
    assert found.line.losses[0] == pytest.approx(found.line.losses[-1], rel=1e-12)
    assert max(map(abs, found.line.barriers)) > 1e-3


def test_prediction_is_that_of_the_full_hessians():
    first, second = multilayer(2), multilayer(3)
    found = connectivity(first, second, cross_entropy, [batch(0), batch(1)], predict=True)
    x, y = (torch.cat(both) for both in zip(batch(0), batch(1), strict=True))
    names = [name for name, _ in first.named_parameters()]
    shapes = [parameter.shape for parameter in first.parameters()]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(first, values, x), y)

    ends = [nn.utils.parameters_to_vector(network.parameters()).detach() for network in (first, second)]
    g = [torch.func.grad(loss)(end) for end in ends]
    hessians = [torch.func.hessian(loss)(end) for end in ends]
    whole = ends[1] - ends[0]

    def predicted(d):
        return ((g[0] - g[1]) @ d / 4 + d @ (hessians[0] + hessians[1]) @ d / 16).item()

    assert found.predicted == pytest.approx(predicted(whole), rel=1e-9)
    sizes = [4 * 6 + 6, 6 * 5 + 5, 5 * 3 + 3]
    for layer, start, size in zip(found.layers, np.cumsum([0, *sizes]), sizes, strict=False):
        only = torch.zeros_like(whole)
        only[start : start + size] = whole[start : start + size]
        assert layer.predicted == pytest.approx(predicted(only), rel=1e-9)


def test_losses_are_those_of_scikit_learn():
    """MLPClassifier with the mixed weights put into it, whole and layer by layer."""
    pytest.importorskip("sklearn")
    from sklearn.metrics import log_loss
    from sklearn.neural_network import MLPClassifier

    first, second = multilayer(4), multilayer(5)
    x, y = batch()
    found = connectivity(first, second, cross_entropy, [(x, y)], points=5)
    network = MLPClassifier((6, 5), activation="relu", max_iter=1)
    with pytest.warns(UserWarning, match="hasn't converged"):
        network.fit(x.numpy(), y.numpy())
    ends = [[parameter.detach().numpy() for parameter in module.parameters()] for module in (first, second)]

    def loss(shares):
        mixed = [(1 - share) * a + share * b for a, b, share in zip(*ends, np.repeat(shares, 2), strict=True)]
        network.coefs_, network.intercepts_ = [w.T for w in mixed[::2]], mixed[1::2]
        return log_loss(y.numpy(), network.predict_proba(x.numpy()))

    assert found.line.losses == pytest.approx([loss([share] * 3) for share in (0, 0.25, 0.5, 0.75, 1)], rel=1e-9)
    for position, layer in enumerate(found.layers):
        unit = np.eye(3)[position]
        assert layer.from_first.losses == pytest.approx([loss(share * unit) for share in (0, 0.5, 1)], rel=1e-9)
        assert layer.from_second.losses == pytest.approx([loss(1 - share * unit) for share in (0, 0.5, 1)], rel=1e-9)


def test_statistics_of_batch_norm_are_those_of_the_mixture():
    """In evaluation mode with statistics of the only batch, a network does what it does in training mode."""
    first, second = multilayer(0, norm=True), multilayer(1, norm=True)
    x, y = batch()
    found = connectivity(first, second, cross_entropy, [(x, y)], points=3, layers=False)
    middle = copy.deepcopy(first).train()
    for parameter, other in zip(middle.parameters(), second.parameters(), strict=True):
        parameter.data = (parameter.data + other.data) / 2
    middle[1].eval()
    hidden = middle[0](x)
    middle[1].running_mean, middle[1].running_var = hidden.mean(0).detach(), hidden.var(0).detach()
    assert found.line.losses[1] == pytest.approx(cross_entropy(middle, (x, y)).item(), rel=1e-9)


def test_fork_angle_by_hand_and_free_of_scale():
    origin = Point(0.0, 0.0)
    assert fork_angle(origin, Point(1.0, 0.0), Point(0.5, 3**0.5 / 2)) == pytest.approx(60)
    assert fork_angle(origin, Point(7.0, 0.0), Point(0.05, 3**0.5 / 20)) == pytest.approx(60)
    with pytest.raises(UserError, match="no angle"):
        fork_angle(origin, origin, Point(1.0, 0.0))


def test_layers_are_named_by_the_first_number():
    names = ["model.layers.3.mlp.up.weight", "model.embed.weight", "0.bias", "layer1.0.conv.weight", "t"]
    assert [layer_of(name) for name in names] == ["model.layers.3", "model.embed", "0", "layer1.0", "t"]


def llama(seed, **options):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(**{"vocab_size": 257, "tie_word_embeddings": True, **sizes, **options})
    ).eval()


@pytest.fixture
def assay(monkeypatch, capsys):
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


@pytest.fixture
def models(tmp_path):
    from assay.data.tokenizers import tokenizers

    places = []
    for name, model in (("a", llama(0)), ("b", llama(1)), ("wide", llama(0, hidden_size=32))):
        model.save_pretrained(tmp_path / name)
        tokenizers.build("bytes").save(tmp_path / name)
        places.append(str(tmp_path / name))
    text = tmp_path / "text.txt"
    text.write_text("the loss on a straight line " * 10)
    return *places, str(text)


def test_command_gives_the_losses_of_transformers(assay, models):
    a, b, _, text = models
    options = ["--points", "3", "--windows", "2", "--length", "16", "--predict", "--fork", b, "--json"]
    status, _, err = assay("analyse", "linear-mode-connectivity", a, b, "--text", text, *options)
    assert status == 2
    assert "no angle" in err
    options = [*options[:-3], "--json"]
    status, out, err = assay("analyse", "linear-mode-connectivity", a, b, "--text", text, *options)
    assert status == 0, err
    found = json.loads(out)
    middle, other = llama(0), llama(1)
    for parameter, end in zip(middle.parameters(), other.parameters(), strict=True):
        parameter.data = (parameter.data + end.data) / 2
    content = Path(text).read_bytes()
    ids = torch.tensor([256, *content[:31]]).view(2, 16)
    with torch.no_grad():
        expected = [model(input_ids=ids, labels=ids).loss.item() for model in (llama(0), middle, other)]
    assert found["line"]["losses"] == pytest.approx(expected, rel=1e-5)
    assert [layer["name"] for layer in found["layers"]] == [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
    ]
    assert found["predicted"] != 0
    status, out, _ = assay("analyse", "linear-mode-connectivity", a, b, "--text", text, *options[:-2], "--no-layers")
    assert status == 0
    assert out.startswith(f"barrier {found['barrier']:.4f} nats per token")


def test_command_says_what_is_wrong_in_one_line(assay, models, tmp_path):
    a, b, wide, text = models
    binary = tmp_path / "binary"
    binary.write_bytes(b"\0\1")
    for arguments, reason in (
        ([a, wide, "--text", text, "--length", "16"], "has shapes"),
        ([a, b, "--text", text, "--length", "100000"], "fewer than one window"),
        ([a, b, "--text", text, "--length", "1"], "leave nothing to look at"),
        ([a, b, "--text", text, "--length", "16", "--points", "2"], "3 at least"),
        ([a, b, "--text", str(binary)], "not UTF-8"),
        ([a, b, "--text", str(tmp_path / "none.txt")], "cannot read"),
        ([a, str(tmp_path / "none"), "--text", text, "--length", "16"], "none"),
    ):
        status, out, err = assay("analyse", "linear-mode-connectivity", *arguments)
        assert (status, out) == (2, "")
        assert reason in err
        assert len([line for line in err.splitlines() if line and "it/s" not in line]) == 1
