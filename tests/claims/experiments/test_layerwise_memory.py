from __future__ import annotations

import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.layerwise_memory import PeakMemory

TINY = {"layers": 1, "depth": 3, "hidden_size": 32, "rank": 4, "sequence_length": 16, "batch_size": 2, "every": 1}


def test_the_peak_counts_storages_while_they_live():
    known = torch.zeros(10)
    with PeakMemory([known]) as memory:
        a = torch.zeros(1000)
        b = a.view(10, 100)
        c = a + 1
        assert memory.now == 40 + 8000
        del c, a
        assert memory.now == 40 + 4000
        b += 1
        assert memory.now == 40 + 4000
        del b
    assert memory.now == 40
    assert memory.peak == 40 + 8000


def test_states_of_one_block_of_three():
    """AdamW's state is two numbers a parameter, and one count for each."""
    found = experiments.build("layerwise-memory", TINY, seed=0)
    assert found == experiments.build("layerwise-memory", TINY, seed=0)
    from assay.models import Decoder, ModelConfig

    model = Decoder(ModelConfig.parse({"depth": 3, "hidden_size": 32, "vocab_size": 257, "max_length": 16}))
    everything = list(model.parameters())
    block = list(model.layers[0].parameters())
    full = sum(8 * p.numel() + 4 for p in everything)
    assert found["full.state"] == full
    assert found["lisa.state"] == full - 2 * sum(8 * p.numel() + 4 for p in block)
    assert found["owlore.state"] < found["lisa.state"]
    assert found["lisa.peak"] < found["full.peak"]
    assert found["full.peak"] > found["full.state"] + 8 * sum(p.numel() for p in everything)
