import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from assay.analysis.flatness import (
    agreement,
    equals,
    fisher_trace,
    flatness,
    linear_probe,
    next_token_loss,
    text_features,
)
from assay.cli import main
from assay.errors import UserError
from assay.measures.curvature import hessian_trace
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.model import AssayForCausalLM


class Bigrams(nn.Module):
    """Logits of the next token from a table: linear in its parameters."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, ids):
        return self.table[ids]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 5, (6, 9), generator=generator())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5, attn_implementation="eager", pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def enumerated(model, ids):
    """T with every label of every position, weighted by its probability: nothing is drawn, no position is shared."""
    parameters, total = list(model.parameters()), 0.0
    for window in ids:
        for position in range(len(window) - 1):
            for label in range(5):
                output = model(window[None])
                log_p = (output if isinstance(output, torch.Tensor) else output.logits)[0, position].log_softmax(-1)
                gradients = torch.autograd.grad(log_p[label], parameters, allow_unused=True)
                square = sum(gradient.square().sum() for gradient in gradients if gradient is not None)
                total += (log_p[label].exp() * square).item()
    return total / (len(ids) * (ids.shape[1] - 1))


def test_the_trace_of_worked_numbers():
    """p = softmax(1, 0, −1) after every token: Tr H = 1 − Σ p² = 0.489457."""
    model = Bigrams(torch.tensor([[1.0, 0, -1]]).repeat(3, 1))
    found = fisher_trace(model, torch.zeros(1, 2, dtype=torch.long), draws=4000, generator=generator())
    assert abs(found.mean - 0.489457) < 4 * found.error < 0.05


@pytest.mark.parametrize("kind", ["bigrams", "llama"])
def test_positions_that_share_a_pass_and_drawn_labels_give_the_enumerated_trace(kind, model, ids):
    network = Bigrams(torch.randn(5, 5, generator=generator(1))) if kind == "bigrams" else model
    expected = enumerated(network, ids[:2])
    found = fisher_trace(network, ids[:2], draws=800, generator=generator())
    assert abs(found.mean - expected) < 4 * found.error
    assert found.error < 0.1 * expected


def test_the_trace_of_a_table_is_that_of_the_hessian_wherever_it_is(ids):
    network = Bigrams(torch.randn(5, 5, generator=generator(2)))
    loss = lambda: F.cross_entropy(network(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())  # noqa: E731
    whole = hessian_trace(loss, [network.table], probes=2000, generator=generator())
    assert enumerated(network, ids) == pytest.approx(whole.mean, abs=4 * whole.error)
    drawn = fisher_trace(network, ids, draws=2000, generator=generator())
    assert abs(drawn.mean - whole.mean) < 4 * math.hypot(drawn.error, whole.error)


def test_the_trace_does_not_depend_on_the_data_labels(ids):
    network = Bigrams(torch.randn(5, 5, generator=generator(3)))
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 5  # predicted, and never a context
    one, two = (fisher_trace(network, some, draws=20, generator=generator()) for some in (ids, other))
    assert one == two
    assert next_token_loss(network, ids) != next_token_loss(network, other)


def test_an_unused_parameter_changes_nothing_and_a_scaled_one_does(ids):
    class Scaled(Bigrams):
        def __init__(self, table, scale):
            super().__init__(table / scale)
            self.scale, self.unused = scale, nn.Parameter(torch.ones(3))

        def forward(self, ids):
            return self.scale * super().forward(ids)

    table = torch.randn(5, 5, generator=generator(4))
    plain, scaled = (Scaled(table, scale) for scale in (1, 2))
    trace = fisher_trace(Bigrams(table), ids, draws=10, generator=generator()).mean
    assert fisher_trace(plain, ids, draws=10, generator=generator()).mean == pytest.approx(trace)
    assert fisher_trace(scaled, ids, draws=10, generator=generator()).mean == pytest.approx(4 * trace, rel=1e-5)


def test_loss_and_parameters_are_those_of_the_model(model, ids):
    found = flatness(model, ids, draws=2, generator=generator())
    assert found.loss == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_probe_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 3)) + rng.standard_normal((300, 3))).argmax(1)
    found = linear_probe(*map(torch.tensor, (x[:200], y[:200], x[200:], y[200:])), ridge=0.01)
    scaled = (x - x[:200].mean(0)) / x[:200].std(0, ddof=1)
    peer = LogisticRegression(C=1 / (0.01 * 200), max_iter=1000, tol=1e-8).fit(scaled[:200], y[:200])
    assert found == pytest.approx(peer.score(scaled[200:], y[200:]), abs=0.011)


def test_features_are_the_mean_of_the_last_hidden_states(model, ids):
    texts = [ids[0, :4], ids[1]]
    expected = [model(text[None], output_hidden_states=True).hidden_states[-1][0].mean(0) for text in texts]
    torch.testing.assert_close(text_features(model, texts), torch.stack(expected).detach())
    decoder = Decoder(ModelConfig(depth=1, hidden_size=8, num_heads=2, vocab_size=5, max_length=16)).eval()
    ours = text_features(AssayForCausalLM.from_decoder(decoder), texts)
    torch.testing.assert_close(ours[1], decoder.hidden(ids[1:2])[0].mean(0).detach())


def test_only_equal_losses_are_compared():
    assert equals([3.0, 2.5, 2.51, 2.53], 0.02) == [1, 2]
    assert agreement([5, 3, 1], [0.5, 0.6, 0.9]) == 1
    assert agreement([1, 3, 5], [0.5, 0.6, 0.9]) == -1
    assert math.isnan(agreement([1, 3], [0.5, 0.6]))
    assert math.isnan(agreement([1, 3, 4], [0.5, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda ids: fisher_trace(Bigrams(torch.zeros(5, 5)), ids, draws=1), "at least 2"),
        (lambda ids: fisher_trace(Bigrams(torch.zeros(5, 5)), ids[0]), "windows"),
        (lambda ids: fisher_trace(nn.Identity(), ids), "no parameter"),
        (
            lambda ids: linear_probe(torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 2), ids[0, :1]),
            "two labels",
        ),
    ],
)
def test_what_cannot_be_measured_is_said(call, reason, ids):
    with pytest.raises(UserError, match=reason):
        call(ids)


@pytest.fixture
def assay(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three folders of small networks with tokenizers of bytes, a text, and texts with labels."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("checkpoints")
    letters = {letter: i for i, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"])}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for seed in range(3):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=257, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2
        )
        LlamaForCausalLM(config).save_pretrained(folder / str(seed))
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder / str(seed))
    (folder / "text.txt").write_text("some text to measure a loss on, " * 10)
    lines = [{"text": letter * (3 + i), "label": letter} for i in range(8) for letter in "ab"]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "one.jsonl").write_text('{"text": "alone", "label": 1}')
    (folder / "bad.jsonl").write_text('{"text": "no label"}')
    return folder


def test_the_command_compares_checkpoints(assay, checkpoints):
    arguments = [*(str(checkpoints / str(seed)) for seed in range(3)), "--text", str(checkpoints / "text.txt")]
    arguments += ["--transfer", str(checkpoints / "labels.jsonl"), "--draws", "4", "--window", "32"]
    status, out, err = assay("analyse", "flatness", *arguments, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert [row["accuracy"] for row in found["models"]] == [1, 1, 1]
    best = min(found["equal"], key=lambda index: found["models"][index]["trace"])
    assert found["flattest"] == found["models"][best]["model"]
    status, out, _ = assay("analyse", "flatness", *arguments, "--tolerance", "9")
    assert "flattest of the 3 within 9 nats" in out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--text", "/no/such"], "cannot read '/no/such'"),
        (["--transfer", "one.jsonl"], "has 1 texts; a probe needs at least 4"),
        (["--transfer", "bad.jsonl"], "line 1: an object with 'text' and 'label' is needed"),
        (["--transfer", "text.txt"], "line 1: no JSON"),
        (["--draws", "1"], "Invalid value for '--draws'"),
    ],
)
def test_mistakes_are_one_line(assay, checkpoints, options, reason, monkeypatch):
    monkeypatch.chdir(checkpoints)
    status, out, err = assay("analyse", "flatness", "0", "--text", "text.txt", *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert reason in err
    assert err.count("\n") == 1
