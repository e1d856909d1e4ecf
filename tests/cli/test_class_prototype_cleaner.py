from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F


def test_wrong_labels_are_counted_and_saved(assay, tmp_path):
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(3).repeat(100)
    features = torch.randn(300, 5, generator=generator) * 0.3
    features[torch.arange(300), true] += 3
    labels = true.clone()
    labels[:30] = (labels[:30] + 1) % 3
    losses = F.cross_entropy(features[:, :3], labels, reduction="none")
    data, kept = tmp_path / "data.safetensors", tmp_path / "judged.safetensors"
    save_file({"features": features, "labels": labels, "losses": losses}, data)
    status, printed, _ = assay("analyse", "class-prototype-cleaner", str(data), "--json", "--save", str(kept))
    assert status == 0
    assert json.loads(printed)["wrong"] == 30
    assert [row["wrong_by_prototypes"] for row in json.loads(printed)["classes"]] == [10, 10, 10]
    assert (load_file(kept)["probability"] < 0.5).nonzero().flatten().tolist() == list(range(30))
    status, printed, _ = assay("analyse", "class-prototype-cleaner", str(data))
    assert "30 of 300 labels are judged wrong" in printed


def test_bad_input_is_one_line(assay, tmp_path):
    save_file({"features": torch.ones(3, 2), "labels": torch.arange(3)}, tmp_path / "part.safetensors")
    (tmp_path / "text").write_text("no tensors")
    cases = [
        (["/no/such"], "cannot read '/no/such'"),
        ([str(tmp_path / "text")], "is no safetensors file"),
        ([str(tmp_path / "part.safetensors")], "has no tensor 'losses'; it needs features, labels, losses"),
        ([str(tmp_path / "part.safetensors"), "--save", "/no/such/x"], "no folder '/no/such'"),
    ]
    for arguments, message in cases:
        status, printed, errors = assay("analyse", "class-prototype-cleaner", *arguments)
        assert (status, printed, errors.count("\n")) == (2, "", 1)
        assert message in errors
