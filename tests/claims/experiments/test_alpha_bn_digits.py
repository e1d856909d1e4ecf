from __future__ import annotations

import pytest
import torch

from assay.claims.digits import digits
from assay.claims.experiments import alpha_bn_digits as module
from assay.claims.experiments import experiments
from assay.claims.experiments.alpha_bn_digits import CORRUPTIONS, _streams, blur, contrast, noise

pytest.importorskip("sklearn")

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(12, 8, 8, generator=GENERATOR)


def test_blur_keeps_even_images_and_spreads_a_dot_evenly() -> None:
    even = torch.full((1, 8, 8), 3.0)
    torch.testing.assert_close(blur(even, 1.0, GENERATOR), even)
    dot = torch.zeros(1, 8, 8)
    dot[0, 4, 4] = 1.0
    spread = blur(dot, 0.8, GENERATOR)[0]
    ratio = torch.exp(torch.tensor(-1 / (2 * 0.8**2)))
    torch.testing.assert_close(spread[4, 5] / spread[4, 4], ratio)
    torch.testing.assert_close(spread[3, 5] / spread[4, 4], ratio**2)
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))


def test_contrast_scales_deviations_and_noise_adds_its_variance() -> None:
    lower = contrast(IMAGES, 0.25, GENERATOR)
    torch.testing.assert_close(lower.mean((1, 2)), IMAGES.mean((1, 2)))
    torch.testing.assert_close(lower.std((1, 2)), 0.25 * IMAGES.std((1, 2)))
    added = noise(torch.zeros(1000, 8, 8), 0.6, GENERATOR)
    torch.testing.assert_close(added.std(), torch.tensor(0.6), atol=5e-3, rtol=0)


def test_a_stream_shows_every_image_in_each_severity_with_its_own_label() -> None:
    even = torch.arange(12.0)[:, None, None].expand(12, 8, 8)
    streams = _streams(even, torch.arange(12), 5, seed=3)
    assert len(streams) == len(CORRUPTIONS) == 3
    for stream in streams:
        assert [len(labels) for _, labels in stream] == [5, 5, 2] * 3
        assert torch.cat([labels for _, labels in stream]).bincount().tolist() == [3] * 12
    for images, labels in [*streams[1], *streams[2]]:
        torch.testing.assert_close(images.mean((1, 2)), labels.float())


def test_the_seed_decides_all_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(seed: int) -> list[torch.Tensor]:
        return [part[:10] for part in digits(seed)]

    monkeypatch.setattr(module, "digits", few)
    monkeypatch.setattr(module, "SOURCE_WEIGHTS", (0.3, 0.7))
    monkeypatch.setattr(module, "CORE_RATES", (1e-3,))
    found = [experiments.build("alpha-bn-digits", {"steps": 3}, seed=seed) for seed in (0, 0)]
    assert found[0] == found[1]
    mean = sum(found[0][f"mixed_{size}"] for size in (8, 64, 256)) / 3
    assert found[0]["mixed"] == pytest.approx(mean)
    assert found[0]["source"] > 0
