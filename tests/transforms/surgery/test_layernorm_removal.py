from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.data.windows import TokenData
from assay.errors import UserError
from assay.models import Decoder
from assay.nn.norm.layer_norm import LayerNorm
from assay.transforms import transforms
from assay.transforms.norm_sites import fold_norms, open_norms
from assay.transforms.surgery import layernorm_removal
from assay.transforms.surgery.layernorm_removal import LayerNormRemoval, RemovalTuning, removal_steps, unevenness

IDS = torch.randint(0, 257, (2, 24), generator=torch.Generator().manual_seed(3))
GPT2 = {
    "norm": "layer-norm",
    "mixer": {"name": "softmax", "qkv_bias": True, "output_bias": True},
    "mlp": {"name": "gelu", "bias": True},
    "position": "learned",
    "head": "tied",
}
LLAMA = {"num_kv_heads": 1, "head": "tied"}


def sites(phases: list[list[Any]]) -> list[Any]:
    return [site for phase in phases for site in phase]


def test_unevenness() -> None:
    spreads = torch.tensor([[9.0, 1.0, 3.0], [1.0, 3.0, 5.0]], requires_grad=True)
    ids = torch.tensor([[7, 8, 9], [8, 8, 0]])  # with 0 as the separator 1, 3 and 3 are ordinary: their mean is 7/3
    loss = unevenness(spreads, ids, 0)
    apart = spreads.detach() - 7 / 3
    torch.testing.assert_close(loss, apart.square().mean())
    loss.backward()
    torch.testing.assert_close(spreads.grad, 2 * apart / 6)
    assert unevenness(torch.full((2, 3), 4.0), ids, 0) == 0


@pytest.mark.parametrize(
    ("depth", "start", "gaps", "published"),
    [
        (12, 20, (2, 2, 3), (20, 44, 68, 104)),
        (24, 20, (2, 2, 3), (20, 68, 116, 188)),
        (36, 30, (4, 4, 6), (30, 174, 318, 534)),
        (48, 50, (4, 4, 6), (50, 242, 434, 722)),
    ],
)
def test_the_published_schedules(
    depth: int, start: int, gaps: tuple[int, int, int], published: tuple[int, int, int, int]
) -> None:
    phases = removal_steps(depth, start, gaps)
    assert tuple(phase[0] for phase in phases) == published
    assert [len(phase) for phase in phases] == [depth, depth, depth, 1]
    for phase, gap in zip(phases, gaps, strict=False):
        assert {later - earlier for earlier, later in itertools.pairwise(phase)} == {gap}


def test_without_gaps_all_go_at_once() -> None:
    assert removal_steps(3, 5, (0, 0, 0)) == [[5, 5, 5], [5, 5, 5], [5, 5, 5], [5]]


def removal(**options: Any) -> LayerNormRemoval:
    tuning = {"steps": 20, "batch_size": 2, **options.pop("tuning", {})}
    return transforms.build("layernorm-removal", {"start": 2, "gaps": (1, 1, 2), "tuning": tuning, **options})


def test_sites_turn_at_their_steps_and_stay(
    make_decoder: Callable[..., Decoder], data: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    kept: list[Any] = []
    monkeypatch.setattr(
        layernorm_removal, "fold_norms", lambda model, phases: kept.append(phases) or fold_norms(model, phases)
    )
    model = removal()(make_decoder(**GPT2), data, lambda share, status: left.append(int(status.split()[0])))
    # MLPs before steps 2 and 3, queries and keys before 4 and 5, values before 6 and 8, the head before 10.
    assert left == [7, 7, 6, 5, 4, 3, 2, 2, 1, 1, *[0] * 10]
    assert not model.training
    (phases,) = kept
    moved = [float(site.watch.mean) for site in sites(phases)]
    assert all(site.divisor != mean for site, mean in zip(sites(phases), moved, strict=True))


@pytest.mark.parametrize("start", [0, 3])
def test_a_divisor_is_the_mean_spread_over_the_tokens_of_the_batch_before(
    make_decoder: Callable[..., Decoder], data: TokenData, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(layernorm_removal, "fold_norms", lambda model, phases: kept.append(phases) or model)
    still = {"steps": start + 1, "lr": 1e-30, "batch_size": 2}
    reference = make_decoder(**GPT2)
    removal(momentum=0.0, start=start, gaps=(0, 0, 0), tuning=still)(make_decoder(**GPT2), data)
    seen: dict[str, Tensor] = {}
    for name, module in reference.named_modules():
        if isinstance(module, LayerNorm):
            module.register_forward_pre_hook(lambda norm, given, name=name: seen.update({name: given[0]}))
    rows = data.batch(max(start - 1, 0), seed=0, batch_size=2, sequence_length=24)
    with torch.no_grad():
        reference(rows[:, :-1])
    deviations = {name: x.var(-1, unbiased=False).add(1e-5).sqrt().mean() for name, x in seen.items()}
    ((mlps, queries, values, (head,)),) = kept
    for index in range(2):
        for site, place in ((mlps[index], "mlp"), (queries[index], "mixer"), (values[index], "mixer")):
            assert site.divisor == pytest.approx(float(deviations[f"layers.{index}.{place}.input_norm"]), rel=1e-4)
    assert head.divisor == pytest.approx(float(deviations["final_norm"]), rel=1e-4)


def test_the_last_stream_is_made_even(make_decoder: Callable[..., Decoder], data: TokenData) -> None:
    ids = data.batch(9, seed=1, batch_size=4, sequence_length=24)[:, :-1]

    def variance_of_spreads(evenness: float) -> float:
        tuning = {"steps": 30, "lr": 1e-2, "batch_size": 4}
        model = removal(evenness=evenness, gaps=(0, 0, 0), start=29, tuning=tuning)(make_decoder(**GPT2), data)
        with torch.no_grad():
            spreads = model.hidden(ids).std(-1, correction=0)
        return float(((spreads - spreads[:, 1:].mean()) / spreads[:, 1:].mean()).square().mean())

    assert variance_of_spreads(10.0) < 0.3 * variance_of_spreads(0.0)


def test_two_calls_give_the_same_weights_and_the_norms_are_trained_too(
    make_decoder: Callable[..., Decoder], data: TokenData
) -> None:
    first, second = (removal()(make_decoder(**LLAMA), data) for _ in range(2))
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    model = make_decoder(**LLAMA)
    open_norms(model, IDS)
    trained = dict(model.named_parameters())
    assert "layers.1.mixer.input_norm.norm.weight" in trained
    assert all(parameter.requires_grad for parameter in trained.values())


def test_the_defaults_are_those_of_the_smallest_published_model() -> None:
    tuning = RemovalTuning()
    schedule = tuning.schedule.build()
    assert (tuning.steps, tuning.lr, tuning.grad_clip) == (300, 6e-4, 1.0)
    assert schedule(12.5 / 300) == pytest.approx(0.5)
    assert schedule(1.0) == pytest.approx(0.5)
    assert tuning.optimizer.dump() == {"name": "adamw", "betas": (0.9, 0.999), "weight_decay": 0.01}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tuning": {"steps": 10}}, r"the last norm is removed before step 10 .* tuning.steps=10 end before"),
        ({"tuning": {"sequence_length": 25}}, "sequence_length=25 is more than the model's 24"),
        ({"tuning": {"stps": 10}}, "unknown field 'stps'; nearest: steps"),
        ({"tuning": {"lr": -1.0}}, "lr=-1.0: input should be greater than 0"),
        ({"gaps": (1, 1, -1)}, "greater than or equal to 0"),
        ({"momentum": 1.0}, "less than 1"),
    ],
)
def test_options_that_do_not_suit_are_refused(
    make_decoder: Callable[..., Decoder], data: TokenData, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        removal(**options)(make_decoder(), data)
