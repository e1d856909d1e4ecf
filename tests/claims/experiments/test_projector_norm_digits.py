from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from assay.claims.experiments import experiments
from assay.claims.experiments.projector_norm_digits import (
    ARMS,
    DESCRIPTIONS,
    END,
    LETTERS,
    PATCHES,
    START,
    WORDS,
    Describer,
)
from assay.nn.norm.projector_norm import text_norm

IMAGES = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))


def build(arm: str) -> Describer:
    return Describer(arm, seed=0, norm_ratio=30.0, depth=2, hidden_size=64)


def test_descriptions_spell_the_digits() -> None:
    for word, row in zip(WORDS, DESCRIPTIONS.tolist(), strict=True):
        assert row[0] == START
        assert "".join(LETTERS[token] for token in row[1:] if token != END) == word
        assert row[len(word) + 1 :] == [END] * (6 - len(word))


def test_patches_are_longer_than_text_unless_they_are_aligned() -> None:
    lengths = {arm: build(arm).patches(IMAGES).norm(dim=-1) for arm in ARMS}
    text = text_norm(build("none").decoder.embedding.weight)
    assert (lengths["none"] / text).mean().item() == pytest.approx(30, rel=0.1)
    torch.testing.assert_close(lengths["aligned"], torch.full((3, PATCHES), text), rtol=1e-3, atol=0)
    torch.testing.assert_close(lengths["default"], torch.full((3, PATCHES), 8.0), rtol=1e-3, atol=0)
    assert [build(arm).norm.compensate for arm in ("default", "aligned")] == [False, True]


def test_the_decoder_reads_the_patches_before_the_text() -> None:
    model, text = build("none"), DESCRIPTIONS[[3, 5, 7]]
    logits = model(IMAGES, text)
    patches, words = model.patches(IMAGES), model.decoder.embedding(text)
    by_hand = {}

    def replace(module: object, arguments: object, embedded: torch.Tensor) -> torch.Tensor:
        by_hand["length"] = embedded.shape[1]
        return torch.cat([patches, words], dim=1)

    handle = model.decoder.embedding.register_forward_hook(replace)
    whole = model.decoder(torch.zeros(3, PATCHES + 7, dtype=torch.long))
    handle.remove()
    assert by_hand["length"] == PATCHES + 7
    torch.testing.assert_close(logits, whole[:, PATCHES:])
    assert not model.decoder.embedding._forward_hooks


def test_the_loss_is_that_of_letters_and_the_first_end() -> None:
    model, labels = build("aligned"), torch.tensor([1, 3, 6])
    logits = model(IMAGES, DESCRIPTIONS[labels][:, :-1]).log_softmax(-1)
    terms = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        spelled = [*map(LETTERS.index, WORDS[label]), END]
        terms += [-row[position, token] for position, token in enumerate(spelled)]
    torch.testing.assert_close(model.loss(IMAGES, labels), torch.stack(terms).mean())


def test_rotations_are_angles_between_a_layer_s_input_and_output() -> None:
    model, labels = build("none"), torch.tensor([1, 3, 6])
    states: list[torch.Tensor] = []
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda module, arguments, after: states.append((arguments[1], after)))
    image, text = model.rotations(IMAGES, labels)
    angles = [torch.acos(F.cosine_similarity(before.double(), after.double(), dim=-1)) for before, after in states]
    mean = torch.stack(angles).mean((0, 1))
    assert image == pytest.approx(mean[:PATCHES].mean().item(), rel=1e-3)
    assert text == pytest.approx(mean[PATCHES:].mean().item(), rel=1e-3)
    assert image < text


def test_one_step_is_reproducible() -> None:
    pytest.importorskip("sklearn")
    options = {"steps": 2, "batch_size": 4, "depth": 1, "hidden_size": 16}
    found, again = (experiments.build("projector-norm-digits", options, seed=0) for _ in range(2))
    assert found == again
    assert found["none_image"] < found["none_text"]
