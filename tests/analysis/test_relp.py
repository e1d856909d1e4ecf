"""Patching on small random networks: what is exact, what another calculation gives, what is refused."""

import dataclasses
import json
import math
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from assay.analysis.patching.activation import Patcher, activation_patching
from assay.analysis.patching.attribution import attribution_patching, differentiable
from assay.analysis.patching.pairs import EncodedPairs
from assay.analysis.patching.relevance import (
    DEFAULT_RULES,
    RULES,
    activation_rule,
    layer_norm_rule,
    product_rule,
    relevance,
    rms_norm_rule,
)
from assay.analysis.patching.sites import SITES, prepared
from assay.analysis.relp import RelP, correlations, relp
from assay.cli import main
from assay.data.synthetic.indirect_object import NAMES, SENTENCES, indirect_objects
from assay.data.tokenizers.hugging_face import HuggingFaceTokenizer
from assay.errors import UserError
from assay.models.hugging_face.loading import load
from assay.models.hugging_face.model import AssayForCausalLM

FIRST = 3
"""The first position at which the pairs differ."""


def small(kind="llama", scale=3.0, **options):
    """A random model whose weights are large enough for it not to be linear."""
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64}
    if kind not in ("gpt2", "gpt_neox"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    sizes |= {} if kind == "gpt2" else {"intermediate_size": 48}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **ids, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(1)
    clean, other = torch.randint(64, (2, 4, 7), generator=generator)
    corrupted = clean.clone()
    corrupted[:, FIRST] = torch.where(other[:, 0] == clean[:, FIRST], other[:, 0] ^ 1, other[:, 0])
    return EncodedPairs(clean, corrupted, torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8]))


def derivative(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.functional.jacobian(function, x)


class TestRules:
    def test_a_norm_keeps_its_scale(self):
        x = torch.tensor([1.0, 3.0, 8.0])
        normed = F.layer_norm(x, (3,), eps=0.0)
        ruled = derivative(lambda z: layer_norm_rule(F.layer_norm(z, (3,), eps=0.0), z, (3,), eps=0.0), x)
        torch.testing.assert_close(ruled @ x, torch.tensor([-1.019049, -0.339683, 1.358732]), rtol=0, atol=1e-6)
        plain = derivative(lambda z: F.layer_norm(z, (3,), eps=0.0), x)
        torch.testing.assert_close(plain @ x, torch.zeros(3), rtol=0, atol=1e-6)
        assert torch.equal(layer_norm_rule(normed, x, (3,), eps=0.0), normed)

    def test_an_rms_norm_does_too(self):
        x, weight = torch.tensor([3.0, -4.0]), torch.tensor([2.0, 5.0])
        ruled = derivative(lambda z: rms_norm_rule(F.rms_norm(z, (2,), weight, 0.5), z, (2,), weight, 0.5), x)
        torch.testing.assert_close(ruled, torch.diag(weight / math.sqrt(12.5 + 0.5)))

    def test_an_activation_is_its_ratio(self):
        x = torch.tensor([2.0, -1.0, 0.5])
        ruled = derivative(lambda z: activation_rule(z, F.gelu(z)), x)
        expected = torch.diag(torch.tensor([0.977250, 0.158655, 0.691462]))
        torch.testing.assert_close(ruled, expected, rtol=0, atol=2e-6)
        zero = derivative(lambda z: activation_rule(z, F.gelu(z)), torch.zeros(1))
        assert float(zero) == 0

    def test_a_product_is_shared_equally(self):
        a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
        slopes = torch.autograd.grad(product_rule(a * b), (a, b))
        assert [float(slope) for slope in slopes] == [1.5, 1.0]

    @pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma2", "gpt_neox", "phi3"])
    def test_values_stay_bit_for_bit(self, kind, pairs):
        model = small(kind)
        plain, ruled, everything = (
            differentiable(model, pairs.corrupted, SITES, rules).logits for rules in ((), DEFAULT_RULES, RULES)
        )
        assert torch.equal(plain, ruled)
        torch.testing.assert_close(everything, plain, rtol=0, atol=1e-5)

    def test_every_rule_changes_the_result(self, pairs):
        model = small()
        everything = attribution_patching(model, pairs, rules=RULES)["mlp"]
        for rule in RULES:
            without = attribution_patching(model, pairs, rules=[other for other in RULES if other != rule])["mlp"]
            assert (without - everything).abs().max() > 1e-3 * everything.abs().max()

    def test_all_rules_together_conserve_relevance(self, pairs):
        model = small(attention_bias=False)

        def relevances(rules):
            run = differentiable(model, pairs.corrupted, ("residual",), rules)
            total = pairs.difference(run.logits).sum()
            stream = run.activations["residual"]
            slopes = torch.autograd.grad(total, stream)
            return total.item(), [(x * slope).sum().item() for x, slope in zip(stream, slopes, strict=True)]

        total, layers = relevances(RULES)
        assert layers == pytest.approx([total] * 3, rel=1e-3)
        for rules in (DEFAULT_RULES, ()):
            total, layers = relevances(rules)
            assert abs(layers[0] - total) > 0.01 * abs(total)

    def test_rules_by_hand_give_the_same(self, pairs):
        """The three rules written into copies of Llama's own modules, with gradients by ``backward``."""
        model, ruled = small(), small()

        def norm(module, x):
            scale = torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
            return module.weight * x * scale

        def mlp(module, x):
            gate, up = module.gate_proj(x), module.up_proj(x)
            half = gate * torch.sigmoid(gate).detach() * up / 2
            return module.down_proj(half + half.detach())

        for module in ruled.modules():
            if type(module).__name__ in ("LlamaRMSNorm", "LlamaMLP"):
                by_hand = norm if type(module).__name__ == "LlamaRMSNorm" else mlp
                module.forward = by_hand.__get__(module)
        clean = model(pairs.clean, output_hidden_states=True)
        corrupted = ruled(pairs.corrupted, output_hidden_states=True)
        for x in corrupted.hidden_states:
            x.retain_grad()
        (high, low) = (pairs.difference(run.logits[:, -1]).mean() for run in (clean, corrupted))
        (low / (high - low).detach()).backward()
        differences = zip(clean.hidden_states[:3], corrupted.hidden_states[:3], strict=True)
        expected = torch.stack([((a - b) * b.grad).sum((0, 2)).detach() for a, b in differences])
        found = attribution_patching(model, pairs, sites=("residual",), rules=DEFAULT_RULES)["residual"]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


class TestPatching:
    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_nothing_changes_nothing_and_everything_everything(self, kind, pairs):
        patcher = Patcher(small(kind), pairs)
        sets = torch.stack([torch.zeros(7), torch.ones(7)]).bool()
        for layer in range(3):
            torch.testing.assert_close(patcher.effect("residual", layer, sets), torch.tensor([0.0, 1.0]))
            assert float(patcher.effect("mlp", layer, sets)[0]) == pytest.approx(0, abs=1e-5)

    def test_in_a_linear_network_all_three_are_equal(self, pairs):
        """GPT-2 without norms, with a linear activation, and with attention that does not depend on its input.

        RelP's x' differs from x by 1e-6.
        """
        model = small("gpt2", activation_function="linear", n_layer=3)
        for block in model.transformer.h:
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
            with torch.no_grad():
                block.attn.c_attn.weight[:, :64] = 0
                block.attn.c_attn.bias[:64] = 0
        model.transformer.ln_f = nn.Identity()
        found = relp(model.double(), pairs)
        for site in SITES:
            truth = found.effects["activation"][site]
            assert truth.abs().max() > 0.01
            for method, error in (("attribution", 1e-6), ("relp", 2e-4)):
                torch.testing.assert_close(found.effects[method][site].float(), truth, rtol=0, atol=error)

    @pytest.mark.parametrize("site", SITES)
    def test_plain_hooks_give_the_same(self, site, pairs):
        """Whole passes, one position at a time, and gradients that ``backward`` leaves."""
        model, layer = small(), 1
        part = model.model.layers[layer]
        part = {"residual": model.model.layers[layer - 1], "attention": part.self_attn, "mlp": part.mlp}[site]
        kept = []
        handle = part.register_forward_hook(lambda *call: kept.append(_first(call[-1])))
        clean, corrupted = (
            pairs.difference(model(ids).logits[:, -1]).mean() for ids in (pairs.clean, pairs.corrupted)
        )
        (slope,) = torch.autograd.grad(corrupted, kept[1])
        handle.remove()
        truth = []
        for position in range(7):

            def patch(module, arguments, output, position=position):
                _first(output)[:, position] = kept[0][:, position]

            handle = part.register_forward_hook(patch)
            with torch.no_grad():
                truth.append(pairs.difference(model(pairs.corrupted).logits[:, -1]).mean() - corrupted)
            handle.remove()
        expected = torch.stack(truth).detach() / (clean - corrupted).detach()
        found = activation_patching(model, pairs, sites=(site,), batch_size=8)[site][layer]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        estimate = ((kept[0] - kept[1]) * slope).sum((0, 2)) / (clean - corrupted)
        found = attribution_patching(model, pairs, sites=(site,))[site][layer]
        torch.testing.assert_close(found, estimate.detach(), rtol=1e-4, atol=1e-5)

    def test_a_decoder_of_this_library_gives_what_transformers_gives(self, pairs, tmp_path):
        model = small()
        model.save_pretrained(tmp_path)
        ours = relp(AssayForCausalLM.from_decoder(load(tmp_path)), pairs)
        for method, effects in relp(model, pairs).effects.items():
            for site, values in effects.items():
                torch.testing.assert_close(ours.effects[method][site], values, rtol=1e-3, atol=1e-4)

    def test_the_model_is_left_as_it_was(self, pairs):
        model = small().train()
        model.lm_head.requires_grad_(False)
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        relp(model, pairs, truth=False)
        assert model.training
        assert [parameter.requires_grad for parameter in model.parameters()] == wanted
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _first(output):
    return output[0] if isinstance(output, tuple) else output


class TestResult:
    def test_correlations_of_a_line_and_of_a_curve(self):
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        assert correlations(x, 5 - 2 * x) == pytest.approx((-1, -1))
        pearson, spearman = correlations(x, x.exp())
        assert pearson == pytest.approx(0.9269, abs=1e-4)  # 84.17 / √(5 · 1649)
        assert spearman == pytest.approx(1)
        assert all(map(math.isnan, correlations(x, torch.zeros(2, 2))))

    def test_the_strongest_are_the_largest_of_either_sign(self):
        values = torch.tensor([[0.0, 0.5], [-0.9, 0.1]])
        found = RelP(0, 1.0, -1.0, {"attribution": {"mlp": -values}, "relp": {"mlp": values}}).strongest(2)
        assert [(place.layer, place.position) for place in found] == [(1, 0), (0, 1)]
        assert found[0].effects == pytest.approx({"attribution": 0.9, "relp": -0.9})


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "options", "reason"),
        [
            (
                "gpt_oss",
                {"num_local_experts": 4, "num_experts_per_tok": 2},
                "the function 'sigmoid' of a signal has no rule",
            ),
            ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2}, "a product of signals of the shapes"),
            ("llama", {"hidden_act": "sigmoid"}, "the activation Sigmoid has no rule: it is 0.5 at 0"),
        ],
    )
    def test_a_part_without_a_rule(self, kind, options, reason, pairs):
        with pytest.raises(UserError, match=reason):
            attribution_patching(small(kind, **options), pairs, rules=DEFAULT_RULES)

    def test_a_norm_without_a_rule(self, pairs):
        class SwishNorm(nn.Module):
            def forward(self, x):
                return F.silu(x) * torch.rsqrt(x.square().mean(-1, keepdim=True))

        class SoftNorm(nn.Module):
            def forward(self, x):
                return x.softmax(-1)

        model = small()
        for norm, reason in ((SwishNorm(), "its gain depends on its input"), (SoftNorm(), "divides by no scale")):
            model.model.norm = norm
            with pytest.raises(UserError, match=reason):
                attribution_patching(model, pairs, rules=["norm"])

    def test_what_is_no_decoder(self, pairs):
        with pytest.raises(UserError, match="Linear has no list of layers with attention"):
            activation_patching(nn.Linear(2, 2), pairs)
        with pytest.raises(UserError, match="has no part for the site 'mlp'"):
            relp(AutoModelForCausalLM.from_config(_opt()), pairs)

    def test_pairs_between_which_nothing_changes(self, pairs):
        with pytest.raises(UserError, match="patching needs prompts on which it differs"):
            relp(small(), dataclasses.replace(pairs, distractor=pairs.answer))

    def test_unknown_names(self, pairs):
        with pytest.raises(UserError, match="unknown rule 'norms'; nearest: norm"):
            attribution_patching(small(), pairs, rules=["norms"])
        with pytest.raises(UserError, match="unknown site 'mlps'; nearest: mlp"), prepared(small()):
            attribution_patching(small(), pairs, sites=["mlps"])

    def test_rules_end_with_the_block(self, pairs):
        model = small()
        with pytest.raises(UserError), relevance(model, ["norms"]):
            pass
        x = torch.tensor([1.0], requires_grad=True)
        (slope,) = torch.autograd.grad(F.silu(x), x)
        assert float(slope) == pytest.approx(0.9277, abs=1e-4)


def _opt():
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 64}
    return AutoConfig.for_model("opt", **sizes, ffn_dim=16, word_embed_proj_dim=32)


@pytest.fixture
def assay(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


class TestCommand:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory):
        """A random Llama with a token for each word that the indirect-object task uses."""
        folder = tmp_path_factory.mktemp("llama")
        text = " ".join(SENTENCES).replace("{a}", "").replace("{b}", "").replace("{subject}", "")
        words = set(text.split()) | {f" {word}" for word in text.split()} | {f" {name}" for name in NAMES}
        vocabulary = {word: id for id, word in enumerate(["<end>", "?", *sorted(words)])}
        backend = Tokenizer(models.WordLevel(vocabulary, "?"))
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="?").save_pretrained(folder)
        config = AutoConfig.for_model(
            "llama", vocab_size=len(vocabulary), num_hidden_layers=2, hidden_size=16, num_attention_heads=2,
            intermediate_size=24, eos_token_id=0, bos_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return str(folder)

    @pytest.fixture
    @staticmethod
    def file(tmp_path):
        def write(*lines):
            path = tmp_path / "pairs.jsonl"
            path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
            return str(path)

        return write

    def test_a_table_and_a_document(self, assay, folder):
        status, out, _ = assay("analyse", "relp", folder, "--prompts", "2", "--top", "3")
        assert status == 0
        assert out.startswith("2 pairs, such as ")
        assert len(out.split("relp\n")[1].splitlines()) == 3
        document = json.loads(assay("analyse", "relp", folder, "--prompts", "2", "--json")[1])
        assert set(document["effects"]) == {"activation", "attribution", "relp"}
        assert len(document["agreement"]) == 6
        first = document["first_difference"]
        assert all(row[:first] == [0] * first for row in document["effects"]["relp"]["residual"])

    def test_pairs_of_a_file(self, assay, folder, file):
        line = {"clean": " Mary gave Anna", "corrupted": " John gave Anna", "answer": " Paul", "distractor": " Tom"}
        arguments = ("--pairs", file(line, line), "--no-truth", "--sites", "mlp", "--json")
        document = json.loads(assay("analyse", "relp", folder, *arguments)[1])
        assert document["first_difference"] == 1
        assert document["agreement"] == []
        assert {method: list(sites) for method, sites in document["effects"].items()} == {
            "attribution": ["mlp"],
            "relp": ["mlp"],
        }

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"corrupted": " Mary gave"}, "pair 2: the clean and the corrupted prompt are the same"),
            ({"clean": " Mary gave Anna"}, "pair 2 has a prompt of 3 tokens, the first pair one of 2"),
            ({"answer": " Tom"}, "pair 2: answer ' Tom' and distractor ' Tom' must differ in their first token"),
            ({"answer": ""}, "pair 2: answer '' and distractor ' Tom' must differ"),
            ({"answer": 3}, "line 2: not a JSON object with the texts clean, corrupted, answer, distractor"),
        ],
    )
    def test_a_wrong_pair_is_named(self, assay, folder, file, change, reason):
        line = {"clean": " Mary gave", "corrupted": " John gave", "answer": " Paul", "distractor": " Tom"}
        status, out, err = assay("analyse", "relp", folder, "--pairs", file(line, line | change))
        assert (status, out) == (2, "")
        assert reason in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--sites", "mlps"], "unknown site 'mlps'; nearest: mlp"),
            (["--rules", "norms"], "unknown rule 'norms'; nearest: norm"),
            (["--pairs", "/no/such"], "cannot read '/no/such'"),
            (["--prompts", "1000"], "1000 pairs asked for; 24 names make 1 to 276"),
        ],
    )
    def test_mistakes_are_one_line(self, assay, folder, arguments, reason):
        status, out, err = assay("analyse", "relp", folder, "--no-truth", *arguments)
        assert (status, out) == (2, "")
        assert reason in err
        assert err.count("\n") == 1

    def test_no_lines_at_all(self, assay, folder, file):
        status, _, err = assay("analyse", "relp", folder, "--pairs", file(""))
        assert (status, err) == (2, "error: no prompt pairs; at least one is needed\n")


@pytest.mark.model
def test_on_a_real_model_the_last_token_comes_to_hold_the_answer(smollm2):
    tokenizer = HuggingFaceTokenizer(folder=str(smollm2.file))
    pairs = EncodedPairs.encode(indirect_objects(0, 2, tokenizer), tokenizer)
    found = relp(smollm2.transformers, pairs, sites=("residual",), truth=False)
    assert found.clean > 1 > -1 > found.corrupted
    last = torch.zeros(1, pairs.clean.shape[1], dtype=torch.bool)
    last[:, -1] = True
    patcher = Patcher(smollm2.transformers, pairs, ("residual",))
    early, late = (float(patcher.effect("residual", layer, last)[0]) for layer in (2, 28))
    assert abs(early) < 0.1
    assert late > 0.8
    assert float(found.effects["relp"]["residual"][28, -1]) == pytest.approx(late, abs=0.1)
