from __future__ import annotations

import torch

from assay.models import Decoder, ModelConfig
from assay.nn.norm import norms


def test_it_is_the_identity_and_has_no_parameters() -> None:
    norm = norms.build("none", hidden_size=8)
    x = torch.randn(2, 3, 8)
    assert norm(x) is x
    assert not list(norm.parameters())


@torch.no_grad()
def test_a_decoder_without_norms_has_none() -> None:
    sizes = {"depth": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 31, "max_length": 8}
    decoder = Decoder(ModelConfig.parse({**sizes, "placement": "peri-ln", "norm": "none"}))
    assert [name for name in decoder.state_dict() if "norm" in name] == []
    ids = torch.arange(8)[None]
    layer = decoder.layers[0]
    x, positions = decoder.begin(ids)
    x = x + layer.mixer.branch(x, positions)
    x = x + layer.mlp.branch(x)
    torch.testing.assert_close(decoder.hidden(ids), x)
