"""Which gains of a network exist and are decayed, by their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.comparison.spec import ComparisonSpec
from assay.models import Decoder, ModelConfig
from assay.nn.linear.scale_vectors import ScaledLinear
from assay.nn.norm import norms
from assay.nn.norm.rms_norm import RMSNorm
from assay.nn.scale_vector import ScaleVector
from assay.optim import parameter_groups

SIZES = {"depth": 1, "hidden_size": 8, "num_heads": 2, "vocab_size": 11, "max_length": 8}
PLACES = ("embedding", "input", "output", "stream", "heads", "final")
EVERYWHERE = {
    "placement": {"name": "peri-ln", "embedding_norm": True},
    "mixer": {"name": "softmax", "qk_norm": True},
}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def build(place: str, **options: Any) -> nn.Module:
    return norms.build("scale-vectors", options, hidden_size=6, place=place)


def decay_by_name(model: nn.Module) -> dict[str, bool]:
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group["decay"]) for group in parameter_groups(model) for p in group["params"]]
    assert len(found) == len(names)
    return dict(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["vector", "scalar*vector"])
def test_is_rmsnorm_bit_for_bit(dtype: torch.dtype, form: str) -> None:
    plain, norm = RMSNorm(6).to(dtype), build("final", form=form).to(dtype)
    plain.weight.data.copy_(draw(6, seed=1))
    norm.gain.weight.data.copy_(plain.weight.data)
    x = 30 * draw(5, 6, dtype=dtype)
    assert torch.equal(norm(x), plain(x))


@pytest.mark.parametrize(("decay", "decayed"), [("input", {"input", "final"}), ("all", set(PLACES)), ("none", set())])
@pytest.mark.parametrize("form", ["vector", "scalar*vector", "vector*vector"])
def test_decay_by_place(decay: str, decayed: set[str], form: str) -> None:
    for place in PLACES:
        assert set(decay_by_name(build(place, decay=decay, form=form)).values()) == {place in decayed}


def test_decay_in_a_network_with_norms_everywhere() -> None:
    model = Decoder(ModelConfig.parse({**SIZES, **EVERYWHERE, "norm": "scale-vectors"}))
    gains = {name: decay for name, decay in decay_by_name(model).items() if "gain" in name}
    assert gains == {
        "embedding_norm.gain.weight": False,
        "layers.0.mixer.input_norm.gain.weight": True,
        "layers.0.mixer.branch.query_norm.gain.weight": False,
        "layers.0.mixer.branch.key_norm.gain.weight": False,
        "layers.0.mixer.output_norm.gain.weight": False,
        "layers.0.mlp.input_norm.gain.weight": True,
        "layers.0.mlp.output_norm.gain.weight": False,
        "final_norm.gain.weight": True,
    }
    post = Decoder(ModelConfig.parse({**SIZES, "placement": "post-ln", "norm": "scale-vectors"}))
    assert not any(decay for name, decay in decay_by_name(post).items() if "stream_norm" in name)


def test_branch_gains_leave_input_norms_without_one() -> None:
    for place in PLACES:
        norm = build(place, branch_gains=True)
        assert (norm.gain is None) == (place == "input")
    x = draw(4, 6)
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(build("input", branch_gains=True)(x), unit, rtol=1e-12, atol=0)


def test_the_unified_strategy() -> None:
    """HG, DNP and the magnitude apart on every map of a layer; one gain before the head; decay on the input side."""
    spec = ComparisonSpec.parse({"arms": ["baseline", "scale-vectors"], "tokens": 1, "run": {"model": SIZES}})
    config = spec.config(spec.arm("scale-vectors"))
    model = Decoder(config.model)
    assert model.layers[0].mixer.input_norm.gain is None
    assert model.layers[0].mlp.input_norm.gain is None
    maps = [m for m in model.modules() if isinstance(m, ScaledLinear)]
    assert len(maps) == 7
    assert all(m.normed and m.output_gain is not None for m in maps)
    gains = [m for m in model.modules() if isinstance(m, ScaleVector)]
    assert len(gains) == 15
    assert {tuple(gain.magnitude.shape) for gain in gains} == {(1,)}
    for name, decay in decay_by_name(model).items():
        if "gain" in name:
            assert decay == ("input_gain" in name or name.startswith("final_norm")), name
    added = sum(p.numel() for p in model.parameters())
    plain = Decoder(spec.config(spec.arm("baseline")).model)
    inner = config.model.intermediate_size
    vectors = 4 * (8 + 8) + 2 * (8 + inner) + (inner + 8)
    assert added - sum(p.numel() for p in plain.parameters()) == vectors + 15 - 2 * 8
