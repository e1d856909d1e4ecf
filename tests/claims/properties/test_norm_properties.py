"""Properties of the residual stream and of gradients, on networks where they are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.claims.properties import properties
from assay.claims.streams import after_each_layer
from assay.models import Decoder, ModelConfig
from assay.models.initialization import initialize
from assay.nn.position import Positions

SIZES = {"hidden_size": 8, "num_heads": 2, "vocab_size": 11, "max_length": 6, "position": "none"}
IDS = torch.tensor([[1, 4, 2, 10, 0], [3, 3, 7, 5, 9]])


def decoder(depth: int = 3, **fields: Any) -> Decoder:
    model = Decoder(ModelConfig.parse({**SIZES, "depth": depth, **fields})).double().eval()
    initialize(model, 0, 0.5)
    return model


def silent(depth: int = 3) -> Decoder:
    """Branches that write nothing: the stream stays the embedding."""
    model = decoder(depth)
    for layer in model.layers:
        layer.mixer.branch.output.weight.data.zero_()
        layer.mlp.branch.down.weight.data.zero_()
    return model


def streams(model: Decoder, ids: Tensor) -> list[Tensor]:
    """Layer by layer, by hand."""
    state, found = model.embedding(ids), []
    for layer in model.layers:
        state = layer(model.residual, state, Positions(), None)
        found.append(state.detach())
    return found


def measure(name: str, model: Decoder, ids: Tensor = IDS) -> dict[str, float]:
    return properties.build(name, model=model, ids=ids, config=None)


def test_the_stream_is_seen_after_each_layer_and_no_hook_stays() -> None:
    model = decoder(placement="peri-ln")
    for seen, expected in zip(after_each_layer(model, IDS, lambda x: x), streams(model, IDS), strict=True):
        assert torch.equal(seen, expected)
    assert not any(layer._forward_hooks for layer in model.layers)


def test_growth_is_the_ratio_of_the_variances_by_token() -> None:
    model = decoder(depth=4)
    by_hand = [
        sum(torch.var(token, correction=0).item() for token in state.flatten(0, 1)) / IDS.numel()
        for state in streams(model, IDS)
    ]
    found = measure("residual-growth", model)
    assert found == pytest.approx(
        {"first": by_hand[0], "last": by_hand[-1], "growth": by_hand[-1] / by_hand[0]}, rel=1e-9
    )


def test_a_stream_that_nothing_is_added_to_does_not_grow() -> None:
    found = measure("residual-growth", silent())
    assert found["growth"] == 1
    assert found["first"] == found["last"] > 0


def test_peri_ln_grows_linearly_where_branches_are_independent_of_the_stream() -> None:
    """Each branch is the same function of nothing but its bias here: it adds the same vector of rms 1."""
    model = decoder(
        depth=5, placement="peri-ln", norm={"name": "rms-norm", "eps": 0.0}, mlp={"name": "gelu", "bias": True}
    )
    model.embedding.weight.data.mul_(1e-6)
    ripple = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    for layer in model.layers:
        layer.mixer.output_norm.weight.data.zero_()
        layer.mlp.branch.down.weight.data.zero_()
        layer.mlp.branch.down.bias.data.copy_(ripple)
    assert measure("residual-growth", model)["growth"] == pytest.approx(25, rel=1e-4)


def test_an_outlier_of_every_token_is_a_sink_and_one_of_one_token_a_peak() -> None:
    model, a = silent(), 40.0
    model.embedding.weight.data.fill_(1.0)
    model.embedding.weight.data[:, 3] = -a
    largest = a / math.sqrt((a**2 + 7) / 8)
    assert measure("activation-outliers", model) == pytest.approx({"peak": largest, "sink": largest}, rel=1e-9)
    model.embedding.weight.data.fill_(1.0)
    model.embedding.weight.data[4, 3] = a
    rest = 1 / math.sqrt((a**2 + 7) / 8)
    found = measure("activation-outliers", model)
    assert found == pytest.approx({"peak": largest, "sink": (largest + 9) / 10}, rel=1e-9)
    assert rest < 1


def test_outliers_lie_between_one_and_the_root_of_the_size() -> None:
    found = measure("activation-outliers", decoder(placement="post-ln"))
    assert 1 <= found["sink"] <= found["peak"] <= 8**0.5


def test_gradient_norms_are_those_of_a_backward_pass() -> None:
    model = decoder(depth=4)
    loss = F.cross_entropy(model(IDS[:, :-1]).transpose(1, 2), IDS[:, 1:])
    loss.backward()
    norms = [torch.nn.utils.get_total_norm(p.grad for p in layer.parameters()).item() for layer in model.layers]
    mean = sum(norms) / 4
    variation = math.sqrt(sum((norm - mean) ** 2 for norm in norms) / 4) / mean
    kept = [p.grad.clone() for p in model.parameters()]
    with torch.no_grad():
        found = measure("gradient-evenness", model)
    assert found == pytest.approx({"spread": max(norms) / min(norms), "variation": variation}, rel=1e-9)
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), kept, strict=True))


def test_one_layer_is_even() -> None:
    assert measure("gradient-evenness", decoder(depth=1)) == {"spread": 1, "variation": 0}
