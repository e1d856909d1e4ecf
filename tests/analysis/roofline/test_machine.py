from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from assay.analysis.roofline.latency import Workload
from assay.analysis.roofline.machine import StaticCache, measure_latency, measure_machine, typical
from assay.errors import UserError
from assay.models import Decoder, ModelConfig

CONFIG = ModelConfig.parse(
    {"depth": 2, "hidden_size": 16, "num_heads": 2, "num_kv_heads": 1, "vocab_size": 19, "max_length": 12}
)


@torch.no_grad()
def test_the_cache_gives_the_logits_of_transformers_cache_and_of_one_pass() -> None:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).eval()
    ids = torch.randint(19, (3, 12))
    whole = decoder(ids)
    for cache in (StaticCache(CONFIG, 3, 12, torch.float32, "cpu"), DynamicCache()):
        found = [decoder(ids[:, :8], cache=cache)]
        for number in range(8, 12):
            if isinstance(cache, StaticCache):
                cache.length = number
            mask = torch.ones(1, 1, 1, number + 1, dtype=torch.bool)
            found.append(decoder(ids[:, number, None], position_ids=torch.tensor([[number]]), mask=mask, cache=cache))
        torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_machine_is_measured() -> None:
    machine = measure_machine(seconds=0.001)
    assert 1e8 < machine.flops < 1e15
    assert all(1e7 < speed < 1e14 for _, speed in machine.bandwidth)
    assert machine.layer > 0


def test_the_median_counts() -> None:
    calls = []
    assert typical(lambda: calls.append(1), 0.0) >= 0
    assert len(calls) == 4


def test_more_tokens_take_longer() -> None:
    """Sixteen times the work of prompt and of tokens: a factor of 2 is far from what noise does."""
    config = CONFIG.model_copy(update={"hidden_size": 64, "intermediate_size": 256, "head_dim": 32})
    few = measure_latency(config, Workload(prompt=64, new=1), seconds=0.05)
    many = measure_latency(config, Workload(batch=2, prompt=512, new=16), seconds=0.05)
    assert many.prefill > 2 * few.prefill
    assert many.decode > 2 * few.decode
    assert measure_latency(CONFIG, Workload(prompt=4, new=0), seconds=0.0).decode == 0
    with pytest.raises(UserError, match="vocab_size is not set"):
        measure_latency(ModelConfig(), Workload())
