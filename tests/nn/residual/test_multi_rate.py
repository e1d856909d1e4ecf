from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.loading import load
from assay.models.hugging_face.model import AssayForCausalLM
from assay.models.hugging_face.saving import save
from assay.nn.residual import residuals
from assay.nn.residual.multi_rate import MultiRateResidual
from assay.nn.residual.scaled import ScaledResidual
from assay.optim import parameter_groups

SIZES = {"depth": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 61, "max_length": 64}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(stream: nn.Module, x: Tensor, branches: list[Tensor]) -> Tensor:
    state = stream.start(x)
    for sublayer, y in enumerate(branches):
        state = stream.write(state, y, sublayer)
    return stream.finish(state)


def test_it_starts_at_the_mean_rate() -> None:
    x, branches = draw(2, 3, 4), list(draw(3, 2, 3, 4, seed=1))
    for slow, fast in ((0.5, 1.5), (1.0, 4.0)):
        stream = residuals.build("multi-rate", {"slow": slow, "fast": fast}, hidden_size=4, num_sublayers=3)
        constant = ScaledResidual(4, 3, branch=(slow + fast) / 2)
        assert torch.equal(run(stream.double(), x, branches), run(constant, x, branches))


def test_far_along_the_gate_a_token_is_fast_and_against_it_slow() -> None:
    stream = MultiRateResidual(4, 1, slow=0.25, fast=3.0).double()
    stream.gates[0].data = torch.tensor([100.0, 0, 0, 0], dtype=torch.float64)
    tokens = torch.tensor([[[2.0, 1, 0, 0], [-2.0, 1, 0, 0], [0.0, 5, 1, 0]]], dtype=torch.float64)
    torch.testing.assert_close(stream.rate(tokens, 0)[0, :, 0], torch.tensor([3.0, 0.25, 1.625], dtype=torch.float64))
    y = draw(1, 3, 4)
    torch.testing.assert_close(stream.write(tokens, y, 0) - tokens, torch.tensor([[[3.0], [0.25], [1.625]]]) * y)


def test_the_rate_is_a_mixture_under_a_softmax_of_two() -> None:
    stream = MultiRateResidual(4, 2, slow=0.3, fast=2.0).double()
    stream.gates[1].data = draw(4, seed=3)
    x = draw(2, 3, 4)
    score = nn.functional.rms_norm(x, (4,), eps=1e-6) @ stream.gates[1]
    shares = torch.stack([score, torch.zeros_like(score)], dim=-1).softmax(-1)
    expected = shares @ torch.tensor([2.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(stream.rate(x, 1)[..., 0], expected)


def test_a_tokens_size_does_not_move_its_rate_and_equal_rates_ignore_the_gate() -> None:
    stream = MultiRateResidual(4, 1, eps=0.0).double()
    stream.gates[0].data = draw(4, seed=3)
    x, y = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    torch.testing.assert_close(stream.rate(x, 0), stream.rate(9 * x, 0))
    stream.slow = stream.fast = 1.0
    assert torch.equal(stream.write(x, y, 0), x + y)


def test_gates_learn_from_the_start_and_are_not_decayed() -> None:
    stream = MultiRateResidual(4, 2).double()
    run(stream, draw(2, 3, 4), list(draw(2, 2, 3, 4, seed=1))).square().sum().backward()
    assert all(gate.grad.abs().max() > 1e-3 for gate in stream.gates)
    assert [(group["role"], group["decay"]) for group in parameter_groups(stream)] == [("vector", False)]


@torch.no_grad()
@pytest.mark.parametrize("placement", ["pre-ln", "post-ln", "peri-ln"])
def test_in_a_decoder(placement: str, tmp_path: object) -> None:
    """The plain network before training; afterwards with a cache and from a folder what it is without."""
    config = {**SIZES, "placement": placement}
    plain = Decoder(ModelConfig.parse(config)).double().eval()
    decoder = Decoder(ModelConfig.parse({**config, "residual": "multi-rate"})).double().eval()
    decoder.load_state_dict(plain.state_dict(), strict=False)
    ids = torch.arange(12)[None] * 5 % 61
    assert torch.equal(decoder(ids), plain(ids))
    for gate in decoder.residual.gates:
        gate += draw(32, seed=7)
    assert not torch.allclose(decoder(ids), plain(ids))
    cache, model = DynamicCache(), AssayForCausalLM.from_decoder(decoder)
    pieces = [model(piece, past_key_values=cache).logits for piece in ids.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(ids), atol=1e-9, rtol=1e-9)
    save(decoder, f"{tmp_path}/model")
    assert torch.equal(load(f"{tmp_path}/model", dtype=torch.float64)(ids), decoder(ids))
