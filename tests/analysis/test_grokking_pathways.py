from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import (
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from assay.analysis.grokking_pathways import (
    Routing,
    complexity,
    find_routers,
    levenshtein,
    pathway,
    pathways,
    route,
    routing,
)
from assay.cli import main
from assay.errors import UserError

COMMON = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 256,
}


def olmoe(seed=0):
    torch.manual_seed(seed)
    model = OlmoeForCausalLM(OlmoeConfig(**COMMON, num_experts=12)).eval()
    for router in find_routers(model).values():
        nn.init.normal_(router.weight)
    return model


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**COMMON, num_local_experts=6, num_key_value_heads=1)).eval()


def qwen():
    config = Qwen3MoeConfig(**COMMON, num_experts=5, num_key_value_heads=1, moe_intermediate_size=8, head_dim=8)
    return Qwen3MoeForCausalLM(config).eval()


def granite():
    return GraniteMoeForCausalLM(GraniteMoeConfig(**COMMON, num_local_experts=4, num_key_value_heads=1)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    from assay.data.tokenizers.bpe import add_separator, save

    place = tmp_path_factory.mktemp("moe")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    add_separator(backend)
    save(backend, place)
    olmoe().save_pretrained(place)
    (place / "text.txt").write_text("one and one\ntwo and two\n\nthree, four, five and six\n")
    return place


@pytest.fixture
def assay(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", "analyse", "grokking-pathways", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        lines = [line for line in written.err.splitlines() if line and "Loading weights" not in line]
        return left.value.code or 0, written.out, lines

    return run


def table(a, b):
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=80), st.lists(st.integers(0, 3), max_size=80))
def test_the_edit_distance_is_that_of_the_whole_table(a, b):
    assert levenshtein(a, b) == table(a, b) == levenshtein(b, a)


@given(*[st.text("01,-", max_size=12)] * 3)
def test_the_edit_distance_is_a_metric(a, b, c):
    assert levenshtein(a, a) == 0
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


def test_edits_by_hand():
    assert levenshtein("3,1,5-9,1", "3,5-9,12") == 3
    assert levenshtein([3, 1, 5, "-", 9, 1], [3, 5, "-", 9, 12]) == 2
    assert levenshtein("", "abc") == levenshtein("abc", "") == 3


def test_routes_by_hand():
    weights = torch.tensor([0.3, 0.5, 0.05, 0.15])
    assert route(weights, 0.7) == (1, 0)
    assert route(weights, 0.5) == (1, 0), "cut where the sum exceeds tau, not where it reaches it"
    assert route(weights, 0.49) == (1,)
    assert route(weights, 1.0) == (1, 0, 3, 2)
    assert route(torch.tensor([0.25] * 4), 0.6) == (0, 1, 2)
    assert pathway([(1, 0), (12,)]) == "1,0-12"


def test_complexity_by_hand():
    """Unit vectors whose neighbours have cosines 0.8, 0.4, 0.6: 1 − 0.6 / 0.8; equal cosines give 0."""

    def path(*cosines):
        angles = torch.tensor([0.0, *(math.acos(c) for c in cosines)], dtype=torch.float64).cumsum(0)
        return torch.stack((angles.cos(), angles.sin()), 1)

    e = torch.stack([path(0.8, 0.4, 0.6), path(0.5, 0.5, 0.5), path(-0.1, -0.2, -0.3)])
    found = complexity(e)
    torch.testing.assert_close(found[:2], torch.tensor([0.25, 0.0], dtype=torch.float64), atol=1e-7, rtol=0)
    assert found[2].isnan()
    scaled = e * torch.tensor([3.0, 0.1, 7.0, 1.0])[:, None]
    torch.testing.assert_close(complexity(scaled), found, equal_nan=True)


def test_samples_of_one_route_are_at_distance_zero_and_one_expert_leaves_no_other():
    e = torch.randn(5, 2, 4)
    same = Routing((torch.tensor([[0.6, 0.3, 0.1]]).expand(5, 3), torch.tensor([[0.2, 0.1, 0.7]]).expand(5, 3)), e)
    assert pathways(same).distance == 0
    assert pathways(Routing((torch.ones(5, 1), torch.ones(5, 1)), e)).distance == 0


def test_distances_by_hand():
    """Pathways "0-0", "1-0" and "0-1,0": distances 1, 2 and 3 in characters; experts: 1, 1 and 2."""
    first = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    second = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    found = pathways(Routing((first, second), torch.ones(3, 2, 4)))
    assert (found.distance, found.layer_distances, found.pairs) == (2, (2 / 3, 4 / 3), 3)
    experts = pathways(Routing((first, second), torch.ones(3, 2, 4)), unit="experts")
    assert (experts.distance, experts.layer_distances) == (4 / 3, (2 / 3, 2 / 3))
    assert found.complexity == pytest.approx(0, abs=1e-7)
    assert found.consistency == 1 - found.complexity


def test_fewer_pairs_are_drawn_alike_for_every_checkpoint():
    generator = torch.Generator().manual_seed(0)
    weights = (torch.rand(12, 8, generator=generator), torch.rand(12, 8, generator=generator))
    weights = tuple(w / w.sum(1, keepdim=True) for w in weights)
    given_routing = Routing(weights, torch.rand(12, 2, 4, generator=generator))
    some = pathways(given_routing, pairs=20, seed=1)
    assert some.pairs == 20
    assert some == pathways(given_routing, pairs=20, seed=1)
    assert some.distance != pathways(given_routing, pairs=20, seed=2).distance


@pytest.mark.parametrize("build", [olmoe, mixtral, qwen])
def test_routing_is_that_of_output_router_logits(build):
    model = build()
    samples = [
        torch.randint(2, 250, (1, length), generator=torch.Generator().manual_seed(length)) for length in (7, 3)
    ]
    found = routing(model, samples)
    for number, ids in enumerate(samples):
        with torch.no_grad():
            logits = model(ids, output_router_logits=True).router_logits
        assert len(found.weights) == len(logits) == 3
        for layer, (weights, expected) in enumerate(zip(found.weights, logits, strict=True)):
            share = expected.softmax(-1).mean(0)
            torch.testing.assert_close(weights[number], share)
            rows = model.model.layers[layer].mlp.gate.weight
            torch.testing.assert_close(found.embeddings[number, layer], share @ rows, atol=1e-6, rtol=1e-5)


def test_routers_within_a_module_of_their_own_are_found():
    model = granite()
    assert list(find_routers(model)) == [f"model.layers.{n}.block_sparse_moe.router" for n in range(3)]
    found = routing(model, [torch.tensor([[3, 4, 5]])])
    assert [tuple(weights.shape) for weights in found.weights] == [(1, 4)] * 3


def test_plain_modules_with_a_bias():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 3)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            weights = self.gate(x).softmax(-1)
            return sum(weights[..., k, None] * expert(x) for k, expert in enumerate(self.experts))

    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    x = torch.randn(1, 6, 4)
    found = routing(model, [x])
    torch.testing.assert_close(found.weights[0][0], F.linear(x, *model[0].gate.parameters()).softmax(-1).mean((0, 1)))
    second = model[1].gate(model[0](x)).softmax(-1).mean((0, 1))
    torch.testing.assert_close(found.weights[1][0], second.detach())


def test_a_model_without_experts_has_no_pathways():
    options = {key: value for key, value in COMMON.items() if key != "num_experts_per_tok"}
    with pytest.raises(UserError, match="LlamaForCausalLM has no router of experts"):
        find_routers(LlamaForCausalLM(LlamaConfig(**options)))
    with pytest.raises(UserError, match="the model has only one"):
        complexity(torch.ones(3, 1, 4))
    with pytest.raises(UserError, match="there is no sample to route"):
        routing(olmoe(), [])


def test_the_command_prints_what_python_computes(assay, folder):
    status, out, err = assay(folder, folder, "--text", folder / "text.txt", "--json")
    assert (status, err) == (0, [])
    first, second = json.loads(out)
    assert first == second
    lines = [line for line in (folder / "text.txt").read_text().splitlines() if line]
    from assay.training.export import tokenizer_of

    tokenizer = tokenizer_of(folder)
    expected = pathways(routing(olmoe(), [torch.from_numpy(tokenizer.encode(line))[None] for line in lines]))
    assert (first["samples"], first["pairs"]) == (3, 3)
    assert first["distance"] == expected.distance
    assert first["complexity"] == pytest.approx(expected.complexity, rel=1e-6)
    assert first["complexity"] + first["consistency"] == pytest.approx(1)
    status, out, _ = assay(folder, "--text", folder / "text.txt")
    assert status == 0
    assert f"{expected.distance:.2f}" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--tau", "1.5"], "error: tau 1.5 is no share of the routing weight"),
        (["--unit", "letters"], "error: Invalid value for '--unit'"),
        (["--pairs", "0"], "error: Invalid value for '--pairs'"),
    ],
)
def test_mistakes_are_one_line(assay, folder, arguments, reason):
    status, out, err = assay(folder, "--text", folder / "text.txt", *arguments)
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith(reason)


def test_mistakes_in_files_are_one_line(assay, folder, tmp_path):
    (tmp_path / "one.txt").write_text("one line\n")
    for path, reason in [
        (tmp_path / "one.txt", "error: 1 sample makes no pair"),
        (tmp_path, f"error: {str(tmp_path)!r} is a folder"),
        (tmp_path / "none.txt", "error: corpus "),
    ]:
        status, out, err = assay(folder, "--text", path)
        assert (status, out, len(err)) == (2, "", 1)
        assert err[0].startswith(reason)
