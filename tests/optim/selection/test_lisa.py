"""LISA with all blocks is AdamW; frozen blocks do not move and cost nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.optim import Selection, optimizers, parameter_groups, selections
from assay.optim.selection.lisa import Lisa

DEPTH = 8


def decoder(depth: int = DEPTH) -> Decoder:
    torch.manual_seed(0)
    shape = {"depth": depth, "hidden_size": 32, "num_heads": 2, "vocab_size": 17, "max_length": 8}
    return Decoder(ModelConfig.parse(shape))


def made(model: nn.Module, optimizer: str = "adamw", seed: int = 0, **options: Any) -> tuple[Any, Selection]:
    built = optimizers.build(optimizer, params=parameter_groups(model), lr=0.01)
    return built, selections.build("lisa", options, model=model, optimizer=built, seed=seed, calibration=None)


def backward(model: nn.Module, step: int) -> None:
    ids = torch.randint(17, (4, 8), generator=torch.Generator().manual_seed(step))
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1).flatten()).backward()


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, selection: Any, steps: range) -> None:
    for step in steps:
        selection(step)
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def outside(model: Decoder) -> list[nn.Parameter]:
    inside = {id(p) for p in model.layers.parameters()}
    return [p for p in model.parameters() if id(p) not in inside]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("reset", [True, False])
def test_with_all_blocks_it_is_the_optimizer_alone(optimizer: str, reset: bool) -> None:
    chosen, whole = decoder(3), decoder(3)
    one, selection = made(chosen, optimizer, layers=3, every=2, reset_state=reset)
    other = optimizers.build(optimizer, params=parameter_groups(whole), lr=0.01)
    advance(chosen, one, selection, range(7))
    advance(whole, other, lambda step: None, range(7))
    assert all(torch.equal(a, b) for a, b in zip(chosen.parameters(), whole.parameters(), strict=True))


def test_a_window_changes_its_blocks_and_what_is_in_none() -> None:
    """Frozen blocks stay bit for bit, weight decay and kept moments notwithstanding."""
    model = decoder()
    optimizer, selection = made(model, layers=2, every=3, reset_state=False)
    assert isinstance(selection, Lisa)
    seen = set()
    for window in range(6):
        before = [[p.detach().clone() for p in block.parameters()] for block in model.layers]
        around = [p.detach().clone() for p in outside(model)]
        advance(model, optimizer, selection, range(3 * window, 3 * window + 3))
        active = selection.active(3 * window)
        assert active == selection.active(3 * window + 2)
        assert len(set(active)) == 2
        seen.update(active)
        for index, (block, old) in enumerate(zip(model.layers, before, strict=True)):
            same = [torch.equal(p, o) for p, o in zip(block.parameters(), old, strict=True)]
            assert same == [index not in active] * len(same)
        assert not any(torch.equal(p, o) for p, o in zip(outside(model), around, strict=True))
    assert len(seen) > 4


def test_gradients_are_those_of_the_whole_backward_pass() -> None:
    chosen, whole = decoder(), decoder()
    _, selection = made(chosen)
    selection(0)
    backward(chosen, 0)
    backward(whole, 0)
    active = {id(p) for index in selection.active(0) for p in chosen.layers[index].parameters()}
    active |= {id(p) for p in outside(chosen)}
    for a, b in zip(chosen.parameters(), whole.parameters(), strict=True):
        assert (a.grad is not None) == (id(a) in active)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_moments_are_those_of_what_is_trained() -> None:
    model = decoder()
    optimizer, selection = made(model, layers=2, every=2)
    for window in range(5):
        advance(model, optimizer, selection, range(2 * window, 2 * window + 2))
        trained = outside(model) + [p for i in selection.active(2 * window) for p in model.layers[i].parameters()]
        moments = sum(state["exp_avg"].numel() + state["exp_avg_sq"].numel() for state in optimizer.state.values())
        assert moments == 2 * sum(p.numel() for p in trained)


def test_a_block_that_comes_back_starts_anew_unless_states_are_kept() -> None:
    for reset in (True, False):
        model = decoder(2)
        optimizer, selection = made(model, layers=1, every=1, reset_state=reset)
        places = [selection.active(step)[0] for step in range(12)]
        back = next(t for t in range(1, 12) if places[t] != places[t - 1] and places[t] in places[:t])
        advance(model, optimizer, selection, range(back + 1))
        parameter = next(model.layers[places[back]].parameters())
        earlier = places[:back].count(places[back])
        assert optimizer.state[parameter]["step"].item() == (1 if reset else 1 + earlier)


def test_every_block_has_the_same_chance() -> None:
    """γ / N of the windows each, within four standard errors."""
    _, selection = made(decoder(), layers=2, every=5)
    windows = 2000
    found = torch.zeros(DEPTH)
    for window in range(windows):
        found[selection.active(5 * window)] += 1
    share = 2 / DEPTH
    assert (found / windows - share).abs().max() < 4 * (share * (1 - share) / windows) ** 0.5


def test_draws_follow_from_seed_and_window_alone() -> None:
    (_, one), (_, two), (_, other) = (made(decoder(), seed=seed) for seed in (3, 3, 4))
    for step in (40, 0, 20):
        one(step)
    assert [one.active(s) for s in range(0, 400, 20)] == [two.active(s) for s in range(0, 400, 20)]
    assert [one.active(s) for s in range(0, 400, 20)] != [other.active(s) for s in range(0, 400, 20)]


def test_without_blocks_the_rest_is_trained_and_what_was_frozen_stays_so() -> None:
    model = decoder()
    model.layers[0].requires_grad_(False)
    _, selection = made(model, layers=0)
    selection(0)
    assert {id(p) for p in model.parameters() if p.requires_grad} == set(map(id, outside(model)))
    _, selection = made(model, layers=DEPTH)
    selection(0)
    assert not any(p.requires_grad for p in model.layers[0].parameters())


def test_in_a_plain_loop_on_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    selection = Lisa(model, optimizer, seed=0, layers=1, every=1)
    ids = torch.randint(31, (2, 8))
    for step in range(6):
        selection(step)
        model(ids, labels=ids).loss.backward()
        made_for = {
            index for index, layer in enumerate(model.model.layers) for p in layer.parameters() if p.grad is not None
        }
        assert made_for == set(selection.active(step))
        assert model.lm_head.weight.grad is not None
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layers": -1}, "selection 'lisa', option layers=-1: input should be greater than or equal to 0"),
        ({"every": 0}, "selection 'lisa', option every=0: input should be greater than 0"),
        ({"layers": 9}, "selection 'lisa', option layers=9: the network has only 8 blocks"),
    ],
)
def test_bad_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        made(decoder(), **options)
    assert str(caught.value) == line
