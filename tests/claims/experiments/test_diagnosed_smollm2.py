"""The numbers of diagnostics, on any model and a text that the seed draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.claims.experiments.diagnosed_smollm2 import a_text, diagnosed_smollm2
from assay.models import Decoder, ModelConfig
from assay.models.hugging_face.saving import save


def test_texts_follow_from_the_seed_and_differ() -> None:
    assert a_text(0) == a_text(0)
    assert len({a_text(seed)[:500] for seed in range(4)}) > 1


def test_numbers_are_those_of_the_diagnostics_on_that_text(tmp_path: Path) -> None:
    from assay.data import DataConfig
    from assay.diagnostics.subject import Subject
    from assay.diagnostics.windows import Windows
    from assay.training.diagnose import carry_out

    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 257, "max_length": 64}
    decoder = Decoder(ModelConfig.parse(sizes)).eval()
    tokenizer = DataConfig.parse({"tokenizer": "bytes"}).tokenizer.build(split=None)
    save(decoder, tmp_path / "model", tokenizer)
    path = str(tmp_path / "model")
    found = diagnosed_smollm2(3, diagnostics=["residual-norms", "voids"], tokens=128, length=32, model=path)
    ids = tokenizer.encode(a_text(3)).tolist()
    windows = Windows.of({"code": ids}, separator=tokenizer.separator, length=32, tokens=128)
    results, _ = carry_out(Subject(decoder), windows, ["residual-norms", "voids"])
    expected = {f"{n}.{k}": x for n, result in results.items() for k, x in result.scalars.items()}
    assert found == pytest.approx(expected, rel=1e-4)
