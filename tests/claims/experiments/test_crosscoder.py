from __future__ import annotations

import torch

from assay.analysis.crosscoder import Crosscoder, read_latents
from assay.claims.experiments import experiments
from assay.claims.experiments.crosscoder import counts


def test_counts_of_a_dictionary_made_of_the_directions() -> None:
    """Shared, weak and shrunk in the first, of each model alone, and one beside all directions."""
    directions = torch.eye(5)[:4]
    gains = torch.tensor([[1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    dictionary = Crosscoder(5, 5, kind="l1")
    beside = torch.tensor([0.0, 0.0, 0.6, 0.0, 0.8])
    dictionary.decoder.data = torch.stack([torch.cat((directions, beside[None])) for _ in range(2)])
    dictionary.decoder.data[0, [1, 3]] = 0
    dictionary.decoder.data[1, [2, 4]] = 0
    dictionary.encoder.data = torch.zeros(2, 5, 5)
    dictionary.encoder.data[1, :4, :4] = torch.diag(torch.tensor([1.0, 1.0, 0.0, 1.0]))
    dictionary.encoder.data[0, 2, 2] = 1
    dictionary.encoder.data[0, 4, 4] = 1
    codes = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * (torch.arange(200)[:, None] % 4 < 3)
    x = torch.einsum("bc,mc,ch->bmh", codes, gains, directions)
    x[:, 0, 4] = 1.0
    found = counts(dictionary, read_latents(dictionary, [x]), directions, gains)
    assert (found["false"], found["true"]) == (1, 2)
    assert (found["false.passed"], found["true.passed"]) == (0, 2)


def test_numbers_of_a_short_run() -> None:
    options = {"hidden_size": 12, "shared": 10, "weak": 2, "alone": 2, "latents": 16, "steps": 5, "batch_size": 32}
    found = experiments.build("planted-latents", {**options, "active": 0.1}, seed=0)
    assert found == experiments.build("planted-latents", {**options, "active": 0.1}, seed=0)
    names = {"false", "true", "false.passed", "true.passed", "explained", "active"}
    assert set(found) == {f"{kind}.{name}" for kind in ("l1", "batch-topk") for name in names}
    for kind in ("l1", "batch-topk"):
        assert found[f"{kind}.false.passed"] <= found[f"{kind}.false"]
        assert found[f"{kind}.explained"] < 1
