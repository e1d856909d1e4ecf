from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.analysis.dynamic_lrp import largest_logit, relevance, token_relevance
from assay.cli import main
from assay.data.tokenizers.bytes import Bytes
from assay.errors import UserError
from assay.models import Decoder
from assay.models.config import ModelConfig
from assay.models.hugging_face.saving import save

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}


def of_output(values: list[float]) -> object:
    return lambda output: torch.tensor(values).view(output.shape)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_product_with_a_matrix_by_hand() -> None:
    """x = (1, 2) and W = [[1, −1], [3, 2]] give (7, 3): 1 and 6 parts of 7."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 3.0], [-1.0, 2.0]])
    found = relevance(layer, torch.tensor([[1.0, 2.0]]), start=of_output([1.0, 0.0]))
    torch.testing.assert_close(found.inputs[0], torch.tensor([[1 / 7, 6 / 7]], dtype=torch.float64))
    assert found.parameters == {}


def test_product_of_two_inputs_gives_each_half() -> None:
    x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0], [3.0, 2.0]])
    found = relevance(torch.matmul, x, w, start=of_output([1.0, 0.0]))
    torch.testing.assert_close(found.inputs[0], torch.tensor([[1 / 14, 6 / 14]], dtype=torch.float64))
    torch.testing.assert_close(found.inputs[1], torch.tensor([[1 / 14, 0], [6 / 14, 0]], dtype=torch.float64))


@pytest.mark.parametrize("operation", [torch.add, torch.sub, torch.mul])
def test_sums_and_products_by_magnitude(operation) -> None:
    a, b = torch.tensor([3.0, -1.0]), torch.tensor([-1.0, 1.0])
    found = relevance(operation, a, b, start=of_output([1.0, 2.0]))
    assert found.inputs[0].tolist() == pytest.approx([0.75, 1])
    assert found.inputs[1].tolist() == pytest.approx([0.25, 1])


def test_quotients_sums_over_dimensions_and_scaled_sums_by_hand() -> None:
    a, b = torch.tensor([3.0]), torch.tensor([0.5])
    assert [r.item() for r in relevance(torch.div, a, b).inputs] == pytest.approx([3 / 5, 2 / 5])
    assert relevance(lambda x: x.mean(-1, keepdim=True), torch.tensor([1.0, -3.0])).inputs[0].tolist() == [
        pytest.approx(0.25),
        pytest.approx(0.75),
    ]
    scaled = relevance(lambda a, b: torch.add(a, b, alpha=4), a, b)
    assert [r.item() for r in scaled.inputs] == pytest.approx([3 / 5, 2 / 5])
    running = relevance(lambda x: x.cumsum(0), torch.tensor([1.0, 3.0]), start=of_output([1.0, 1.0]))
    assert running.inputs[0].tolist() == pytest.approx([1.25, 0.75])


def test_a_bias_and_a_factor_take_their_share_and_constants_take_none() -> None:
    layer = nn.Linear(1, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[2.0]]), torch.tensor([-2.0])
    found = relevance(lambda x: layer(x) * 5 + 100, torch.tensor([[3.0]]))
    assert found.inputs[0].item() == pytest.approx(6 / 8)
    named = relevance(layer, torch.tensor([[3.0]]))
    assert named.parameters == {"bias": pytest.approx(2 / 8)}
    masked = relevance(lambda x: x + torch.tensor([0.0, -torch.inf]), torch.tensor([1.0, 1.0]))
    assert masked.inputs[0].tolist() == [1.0, 0.0]


def test_without_biases_it_is_input_times_gradient_over_the_logit() -> None:
    network = nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False)).double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    logits = network(x)
    largest = logits.max(-1).values
    (gradient,) = torch.autograd.grad(largest.sum(), x)
    expected = (x * gradient / largest[:, None]).detach()
    torch.testing.assert_close(relevance(network, x.detach()).inputs[0], expected)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 100.0])
def test_gamma_of_contributions_one_by_one(gamma: float) -> None:
    """A contribution x_i w_ij counts 1 + γ times where its sign is that of z_j."""
    layer = nn.Linear(5, 3, bias=False).double()
    x, start = torch.randn(5, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    parts = x[:, None] * layer.weight.T
    parts = parts * torch.where(parts.sign() == parts.sum(0).sign(), 1 + gamma, 1.0)
    expected = (parts / parts.sum(0) * start).sum(1).detach()
    found = relevance(layer, x[None], start=lambda z: start[None], linear_gamma=gamma)
    torch.testing.assert_close(found.inputs[0][0], expected)


def test_gamma_of_a_convolution_is_that_of_its_matrix() -> None:
    convolution = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    found = relevance(lambda x: convolution(x).flatten(1), x, convolution_gamma=2.0)
    matrix = nn.Linear(50, 27, bias=False).double()
    matrix.weight.data = convolution(torch.eye(50, dtype=torch.float64).view(50, 2, 5, 5)).flatten(1).T.detach()
    torch.testing.assert_close(
        found.inputs[0].flatten(1), relevance(matrix, x.flatten(1), linear_gamma=2.0).inputs[0]
    )


def test_softmax_three_ways_by_hand() -> None:
    """Weights of attention: constants, logits as they are, or x (R − p Σ R) with the offset's part beside it."""
    x, v = torch.tensor([[0.5, -1.0]], dtype=torch.float64), torch.tensor([[2.0], [3.0]], dtype=torch.float64)

    def attention(x: Tensor, v: Tensor) -> Tensor:
        return x.softmax(-1) @ v

    p = x.softmax(-1)
    share = (p.T * v / (p @ v)).T
    gate = relevance(attention, x, v, softmax="gate")
    torch.testing.assert_close(gate.inputs[1].T, share)
    assert gate.inputs[0].abs().max() == 0
    identity = relevance(attention, x, v, softmax="identity")
    torch.testing.assert_close(identity.inputs[0], share / 2)
    torch.testing.assert_close(identity.inputs[1].T, share / 2)
    taylor = relevance(attention, x, v)
    torch.testing.assert_close(taylor.inputs[0], x * (share / 2 - p / 2))
    assert taylor.conservation_error < 1e-9
    assert taylor.parameters["softmax"] == pytest.approx(0.5 - taylor.inputs[0].sum().item())


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.head = cell(8, 8, num_layers=2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def encoder() -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 4))


def causal(kind: str, **options) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **tokens, **options))


NETWORKS = {
    "decoder": lambda: Decoder(
        ModelConfig.parse({"vocab_size": 50, "max_length": 16, "hidden_size": 16, "depth": 2})
    ),
    "llama": lambda: causal("llama", num_attention_heads=4, num_key_value_heads=2),
    "mixtral": lambda: causal("mixtral", num_attention_heads=4, num_key_value_heads=2, num_local_experts=4),
    "mamba": lambda: causal("mamba", state_size=4),
    "mamba2": lambda: causal("mamba2", state_size=4, num_heads=8, head_dim=4, n_groups=1, chunk_size=4),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "convolutional": convolutional,
    "encoder": encoder,
}


@pytest.mark.parametrize("softmax", ["gate", "identity", "attnlrp"])
@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_is_conserved_and_every_operation_has_a_rule(name: str, softmax: str) -> None:
    network = NETWORKS[name]().eval()
    if name in ("gru", "lstm", "encoder"):
        found = relevance(network, torch.randn(2, 6, 8), softmax=softmax)
    elif name == "convolutional":
        found = relevance(network, torch.randn(2, 1, 8, 8), softmax=softmax)
    else:
        found = token_relevance(network, torch.randint(3, 50, (7,)), softmax=softmax)
        assert found.inputs[0].shape == (7,)
    assert found.conservation_error < 1e-6
    assert (found.coverage, found.unknown) == (1.0, {})
    assert found.inputs[0].abs().sum() > 0.1
    assert sum(found.operations.values()) >= 9
    assert abs(found.parameters.get("constants", 0.0)) < 1e-3


def test_the_recorded_pass_is_the_network() -> None:
    for name in ("decoder", "convolutional", "lstm"):
        network = NETWORKS[name]().eval()
        x = {"decoder": torch.randint(50, (1, 7)), "lstm": torch.randn(2, 6, 8)}.get(name, torch.randn(2, 1, 8, 8))
        torch.testing.assert_close(relevance(network, x).output, network(x).detach())


def test_tokens_have_the_relevance_of_their_embeddings() -> None:
    model = causal("llama", num_attention_heads=4).eval()
    ids = torch.randint(3, 50, (1, 7))
    features = relevance(
        lambda x: model(inputs_embeds=x, use_cache=False), model.get_input_embeddings()(ids).detach()
    )
    torch.testing.assert_close(relevance(model, ids).inputs[0], features.inputs[0].sum(-1))


def test_a_causal_model_has_no_relevance_after_the_position() -> None:
    model = causal("llama", num_attention_heads=4).eval()

    def start(logits: Tensor) -> Tensor:
        return F.pad(largest_logit(logits[:, 3:4]), (0, 0, 3, 3))

    found = relevance(model, torch.randint(3, 50, (1, 7)), start=start, softmax="identity")
    assert found.inputs[0][0, 4:].abs().max() == 0
    assert found.inputs[0][0, :4].abs().min() > 0


def test_writing_in_place_changes_nothing() -> None:
    """Slices, views and loops that write into a buffer, beside the same without."""

    def writing(x: Tensor) -> Tensor:
        z = x.clone()
        first = z[:, 0]
        z[:, 0] = x[:, 1] * 2
        first.mul_(z[:, 2]).relu_()
        z.view(-1)[3:5] = 1.0
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            out[:, t] = z[:, t] + x[:, 0]
        return out.transpose_(0, 1).sum(0)

    def plain(x: Tensor) -> Tensor:
        first = ((x[:, 1] * 2) * x[:, 2]).relu()
        z = torch.cat([first[:, None], x[:, 1:]], 1)
        places = torch.arange(x.numel()).view(x.shape)
        z = torch.where((places >= 3) & (places < 5), torch.ones(()), z)
        return torch.stack([z[:, t] + x[:, 0] for t in range(x.shape[1])], 1).transpose(0, 1).sum(0)

    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(writing(x), plain(x))
    found, expected = relevance(writing, x), relevance(plain, x)
    torch.testing.assert_close(found.inputs[0], expected.inputs[0])
    assert found.coverage == 1
    torch.testing.assert_close(found.output, plain(x))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("autograd plays no part")


def test_autograd_functions_are_seen_through() -> None:
    found = relevance(Square.apply, torch.randn(1, 4))
    assert found.operations == {"mul": 1}
    assert found.conservation_error == 0


def test_an_operation_without_a_rule_is_named() -> None:
    network = nn.Linear(4, 3)
    found = relevance(lambda x: network(torch.cumprod(x, -1)), torch.rand(2, 4) + 0.5)
    assert found.unknown == {"cumprod": 1}
    assert found.coverage == pytest.approx(1 - 1 / (sum(found.operations.values()) + 1))
    assert found.conservation_error > 1e-3


def test_what_cannot_be_explained() -> None:
    with pytest.raises(UserError, match="does not depend on its inputs"):
        relevance(lambda x: torch.ones(1, 3), torch.randn(1, 3))
    with pytest.raises(UserError, match="neither a tensor nor anything with logits"):
        relevance(lambda x: {"y": x}, torch.randn(1, 3))
    model = NETWORKS["decoder"]().eval()
    with pytest.raises(UserError, match="tokens 0 to 49"):
        token_relevance(model, torch.tensor([3, 4]), token=50)
    with pytest.raises(UserError, match="at least one token"):
        token_relevance(model, torch.tensor([], dtype=torch.long))


@pytest.fixture
def assay(monkeypatch, capsys):
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", "analyse", "dynamic-lrp", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("dynamic_lrp") / "model"
    torch.manual_seed(0)
    save(Decoder(ModelConfig(depth=2, hidden_size=16, num_heads=2, vocab_size=257, max_length=16)), place, Bytes())
    return str(place)


def test_the_command_prints_what_the_function_finds(assay, folder) -> None:
    """Relevance is the same in both of the implementations that the weights can be opened with."""
    from assay.training.export import load, open_model

    status, printed, _ = assay(folder, "--text", "abc", "--token", "d", "--softmax", "identity", "--json")
    assert status == 0
    document = json.loads(printed)
    for model in (load(folder), open_model(folder)):
        found = token_relevance(model, torch.tensor(list(b"abc")), token=ord("d"), softmax="identity")
        assert document["relevance"] == pytest.approx(found.inputs[0].tolist())
    assert (document["explained"], document["tokens"], document["unknown"]) == ("d", ["a", "b", "c"], {})
    assert (document["coverage"], document["operations"]) == (1.0, sum(found.operations.values()))
    status, printed, _ = assay(folder, "--text", "abc", "--gamma", "0.5")
    assert status == 0
    assert "'b'" in printed
    assert "rules for 100.00% of" in printed


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--text", "abc", "--token", "de"], "--token 'de' is 2 tokens ('d', 'e'), not one"),
        (["--text", "abc", "--token", ""], "--token '' is 0 tokens (none), not one"),
        (["--text", ""], "at least one token"),
        (["--text", "a" * 17], "17 tokens, and the model has room for 16"),
    ],
)
def test_bad_input_is_one_line(assay, folder, arguments, wrong) -> None:
    status, printed, error = assay(folder, *arguments)
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert wrong in error


def test_no_model_is_one_line(assay, tmp_path) -> None:
    status, _, error = assay(str(tmp_path / "none"), "--text", "abc")
    assert (status, error.count("\n")) == (2, 1)


@pytest.mark.model
def test_a_real_model(smollm2) -> None:
    ids = torch.tensor(smollm2.tokenizer("The capital of France is", add_special_tokens=False).input_ids)
    found = token_relevance(smollm2.transformers, ids)
    assert smollm2.tokenizer.decode([int(found.output[0, -1].argmax())]) == " Paris"
    assert found.conservation_error < 1e-4
    assert found.coverage == 1
    assert sum(found.operations.values()) > 2000
