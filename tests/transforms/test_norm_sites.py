from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import assay
from assay.errors import UserError
from assay.models import Decoder
from assay.models.hugging_face.saving import save
from assay.nn.norm.layer_norm import LayerNorm
from assay.nn.norm.rms_norm import RMSNorm
from assay.transforms import norm_sites
from assay.transforms.norm_sites import Watch, fake, fold, fold_norms, normless, open_norms, spread

IDS = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(3))
GPT2 = {
    "norm": "layer-norm",
    "mixer": {"name": "softmax", "qkv_bias": True, "output_bias": True},
    "mlp": {"name": "gelu", "bias": True},
    "position": "learned",
    "head": "tied",
}
LLAMA = {"num_kv_heads": 1, "head": "tied"}
MODELS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "without biases to begin with": {"norm": "layer-norm", "mlp": ["gelu", "swiglu"], "mixer": "gated-attention"},
    "without shifts": {"norm": {"name": "layer-norm", "bias": False}, "head": {"name": "untied", "bias": True}},
    "scaled": {"norm": "layer-norm", "placement": "layernorm-scaling", "residual": "scaled"},
    "without gains": {"norm": {"name": "rms-norm", "gain": False}},
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_norm(kind: str, size: int, seed: int = 0) -> Any:
    norm = {
        "layer-norm": lambda: LayerNorm(size),
        "layer-norm without shift": lambda: LayerNorm(size, bias=False),
        "rms-norm": lambda: RMSNorm(size),
        "rms-norm without gain": lambda: RMSNorm(size, gain=False),
    }[kind]().double()
    for index, parameter in enumerate(norm.parameters()):
        parameter.data += draw(size, seed=seed + index)
    return norm


KINDS = ["layer-norm", "layer-norm without shift", "rms-norm", "rms-norm without gain"]


def sites(phases: list[list[Any]]) -> list[Any]:
    return [site for phase in phases for site in phase]


def freeze(phases: list[list[Any]], model: Decoder) -> None:
    """All sites, each with a divisor of its own."""
    model.train()
    with torch.no_grad():
        model(IDS)
    model.eval()
    for number, site in enumerate(sites(phases)):
        site.freeze()
        site.divisor *= 1 + number / 10


def test_worked_number() -> None:
    norm, x = LayerNorm(4).double(), torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, -0.5, 0.0, 1.5]], dtype=torch.float64)
    torch.testing.assert_close(fake(norm, x, 2.0), expected)
    torch.testing.assert_close(F.layer_norm(x, (4,), torch.full((4,), 1e6 / 2).double(), eps=1e12), expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 8), divisor=st.floats(0.3, 30))
def test_a_fake_norm_is_the_real_one_with_an_epsilon_that_drowns_the_variance(
    kind: str, seed: int, size: int, divisor: float
) -> None:
    norm, x = make_norm(kind, size, seed), draw(3, size, seed=seed + 9)
    drowned = copy.deepcopy(norm)
    drowned.eps = 1e12
    torch.testing.assert_close(fake(norm, x, divisor), _unshifted(drowned, x) * 1e6 / divisor + _shift(norm))


def _shift(norm: Any) -> Any:
    return 0.0 if getattr(norm, "bias", None) is None else norm.bias


def _unshifted(norm: Any, x: Tensor) -> Tensor:
    return norm(x) - _shift(norm)


@pytest.mark.parametrize("kind", KINDS)
def test_fake_is_real_where_all_tokens_have_the_spread_that_it_divides_by(kind: str) -> None:
    norm, x = make_norm(kind, 6), draw(5, 6)
    x = x[:1] * torch.tensor([[1.0], [-1.0], [1.0]])
    torch.testing.assert_close(fake(norm, x, float(spread(norm, x)[0])), norm(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fake_norm_is_affine(kind: str) -> None:
    norm, a, b = make_norm(kind, 6), draw(5, 6, seed=1), draw(5, 6, seed=2)

    def linear(x: Tensor) -> Tensor:
        return fake(norm, x, 1.7) - _shift(norm)

    torch.testing.assert_close(linear(2 * a - 3 * b), 2 * linear(a) - 3 * linear(b))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_folding_moves_all_of_the_norm_into_the_map(kind: str, bias: bool) -> None:
    norm, map, x = make_norm(kind, 6), nn.Linear(6, 4, bias=bias).double(), draw(5, 6)
    weight, shifted = fold(norm, 0.6, map.weight, map.bias)
    assert (shifted is None) == (not bias and _shift(norm) is 0.0)  # noqa: F632
    torch.testing.assert_close(F.linear(x, weight, shifted), map(fake(norm, x, 0.6)))


def test_the_running_mean_forgets_geometrically() -> None:
    watch = Watch(LayerNorm(8).double(), momentum=0.9).train()
    first, then = draw(2, 3, 8), 5 * draw(2, 3, 8, seed=1)
    assert watch(first) is first
    start = first.std(-1, correction=0).mean()
    torch.testing.assert_close(watch.mean, start, rtol=1e-4, atol=0)
    end = spread(watch.norm, then).mean()
    for _ in range(4):
        watch(then)
    torch.testing.assert_close(watch.mean, end + 0.9**4 * (spread(watch.norm, first).mean() - end))
    kept = watch.mean
    watch.eval()(first)
    assert watch.mean is kept


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_a_folded_model_computes_what_the_model_with_fake_norms_does(
    make_decoder: Callable[..., Decoder], tmp_path: Path, fields: dict[str, Any]
) -> None:
    model = make_decoder(**fields)
    before = model(IDS)
    phases = open_norms(model, IDS)
    torch.testing.assert_close(model(IDS), before)
    freeze(phases, model)
    faked = model(IDS)
    assert (faked - before).abs().max() > 1e-2
    folded = fold_norms(model, phases)
    torch.testing.assert_close(folded(IDS), faked, rtol=1e-4, atol=1e-4)
    assert [name for name in folded.state_dict() if "norm" in name] == []
    assert not any(isinstance(module, LayerNorm | RMSNorm | Watch) for module in folded.modules())

    save(folded, tmp_path / "saved")
    assert torch.equal(assay.load(tmp_path / "saved")(IDS), folded(IDS))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(IDS).logits, folded(IDS))


@torch.no_grad()
def test_values_may_be_fake_while_queries_are_real(make_decoder: Callable[..., Decoder]) -> None:
    model = make_decoder(**GPT2, depth=1)
    layer, x = model.layers[0], model.embedding(IDS) + model.position.table.weight
    mixer, norm = layer.mixer.branch, layer.mixer.input_norm
    real, faked = norm(x), fake(norm, x, 0.5)
    heads = [
        map(input).unflatten(-1, (2, 8)).transpose(1, 2)
        for map, input in ((mixer.query, real), (mixer.key, real), (mixer.value, faked))
    ]
    scores = (heads[0] @ heads[1].mT / 8**0.5).masked_fill(torch.ones(24, 24).triu(1).bool(), -torch.inf)
    x = x + mixer.output((scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2))
    x = x + layer.mlp.branch(layer.mlp.input_norm(x))
    expected = model.final_norm(x) @ model.embedding.weight.T

    _, _, (values,), _ = open_norms(model, IDS)
    values.divisor = 0.5
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_against_gpt2_of_transformers_with_the_published_epsilon(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=24, n_embd=16, n_layer=2, n_head=2)).eval()
    for name, parameter in theirs.named_parameters():
        parameter += 0.2 * torch.randn(parameter.shape) if "ln_" in name or "bias" in name else 0
    theirs.save_pretrained(tmp_path)
    ours = assay.load(tmp_path)
    phases = open_norms(ours, IDS)
    divisors = {"ln_2": (0.4, 0.9), "ln_1": (0.3, 0.7), "ln_f": 1.3}
    for index, block in enumerate(theirs.transformer.h):
        for phase, norm, name in ((0, block.ln_2, "ln_2"), (1, block.ln_1, "ln_1"), (2, None, "ln_1")):
            phases[phase][index].divisor = divisors[name][index]
            if norm is not None:
                norm.weight *= 1e6 / divisors[name][index]
                norm.eps = 1e12
    phases[3][0].divisor = divisors["ln_f"]
    theirs.transformer.ln_f.weight *= 1e6 / divisors["ln_f"]
    theirs.transformer.ln_f.eps = 1e12
    torch.testing.assert_close(fold_norms(ours, phases)(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_against_llama_of_transformers_with_the_published_epsilon(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=257, max_position_embeddings=24, **sizes)).eval()
    norms = [module for name, module in theirs.named_modules() if name.endswith("norm")]
    for norm in norms:
        norm.weight += 0.2 * torch.randn(16)
    theirs.save_pretrained(tmp_path)
    ours = assay.load(tmp_path)
    phases = open_norms(ours, IDS)
    for site in sites(phases):
        site.divisor = 0.6
    for norm in norms:
        norm.weight *= 1e6 / 0.6
        norm.variance_epsilon = 1e12
    assert len(norms) == 5
    torch.testing.assert_close(fold_norms(ours, phases)(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_logits_become_a_sum_of_what_each_component_writes(make_decoder: Callable[..., Decoder]) -> None:
    def contributions(model: Decoder) -> tuple[list[Tensor], Tensor]:
        written = [model.position.embed(model.embedding(IDS), torch.arange(24)[None])]
        for layer in model.layers:
            for sublayer in (layer.mixer, layer.mlp):
                sublayer.branch.register_forward_hook(lambda branch, given, y: written.append(y))
        return written, model(IDS)

    model = make_decoder(**GPT2)
    phases = open_norms(model, IDS)
    freeze(phases, model)
    written, logits = contributions(fold_norms(model, phases))
    head = fold_norms(model, phases).head.projection
    direct = sum((part @ head.weight.T for part in written), head.bias)
    torch.testing.assert_close(direct, logits, rtol=1e-4, atol=1e-4)

    normed = make_decoder(**GPT2)
    written, logits = contributions(normed)
    parts = [normed.head(normed.final_norm(part), normed.embedding.weight) for part in written]
    assert (sum(parts) - logits).abs().max() > 0.1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"norm": "seednorm"}, "has the norm 'seednorm' in the placement 'pre-ln'"),
        ({"norm": "none"}, "has the norm 'none'"),
        ({"placement": "post-ln"}, "in the placement 'post-ln'"),
        ({"linear": {"name": "scale-vectors", "gains": "both"}}, "mixer.branch.query', which is no plain linear map"),
        ({"placement": "peri-ln"}, "'layers.0.mixer.output_norm' is not on the input of a mixer"),
        (
            {"mixer": {"name": "softmax", "qk_norm": True}},
            "'layers.0.mixer.branch.query_norm' is not on the input",
        ),
    ],
)
def test_models_that_do_not_suit_are_refused(
    make_decoder: Callable[..., Decoder], fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match="norms cannot be folded") as caught:
        open_norms(make_decoder(**fields), IDS)
    assert reason in str(caught.value)


def test_a_norm_that_is_read_by_more_than_maps_is_noticed(
    make_decoder: Callable[..., Decoder],
) -> None:
    model = make_decoder()
    branch = model.layers[1].mlp.branch
    original = branch.forward
    branch.forward = lambda x: original(x) + 0.1 * x
    with pytest.raises(UserError, match="read by more than linear maps"):
        open_norms(model, IDS)


def test_a_shift_without_a_bias_to_go_into_is_noticed_before_anything_is_folded(
    make_decoder: Callable[..., Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_decoder(norm="layer-norm")
    phases = open_norms(model, IDS)
    monkeypatch.setitem(norm_sites.BIASES, "mlp", "no_such_option")
    with pytest.raises(UserError, match=r"shifts find no biases to go into: mlp: .* no option 'no_such_option'"):
        normless(model, phases)
    monkeypatch.setitem(norm_sites.BIASES, "mlp", "bias")
    monkeypatch.setitem(norm_sites.BIASES, "mixer", "output_bias")
    with pytest.raises(UserError, match=r"there is no layers\.0\.mixer\.branch\.query\.bias"):
        normless(model, phases)
