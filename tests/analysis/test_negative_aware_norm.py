from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from assay.analysis.negative_aware_norm import (
    activation_entropy,
    hidden_logits,
    joined,
    last_features,
    negative_aware_norm,
    negative_aware_norms,
    read_features,
    separation,
)
from assay.cli import main
from assay.errors import UserError
from assay.models.vision import networks


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_worked_numbers() -> None:
    features = torch.tensor([[2.0, 0, 1, 0, 0], [2, 1, 1, 1, 1], [2, -0.5, 1, -0.1, 0], [-1, 0, -2, 0, 0]])
    torch.testing.assert_close(negative_aware_norm(features), torch.tensor([1.5, 1.2, 1.8, 0.0]))


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.01, 100), silent=st.integers(0, 5), seed=st.integers(0, 2**20))
def test_scales_with_the_features_and_sees_neither_their_order_nor_silent_units(
    scale: float, silent: int, seed: int
) -> None:
    features = draw(4, 7, seed=seed)
    found = negative_aware_norm(features)
    torch.testing.assert_close(negative_aware_norm(scale * features), scale * found)
    shuffled = features[:, torch.randperm(7, generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(negative_aware_norm(shuffled), found)
    padded = torch.cat((features, torch.zeros(4, silent, dtype=torch.float64)), dim=1)
    torch.testing.assert_close(negative_aware_norm(padded), found)


def test_of_rectified_features_it_is_numpys_mean_of_the_entries_above_0() -> None:
    features = draw(50, 20).relu()
    expected = [row[row > 0].mean() for row in features.numpy()]
    np.testing.assert_allclose(negative_aware_norm(features).numpy(), expected, rtol=1e-13)
    positive = draw(50, 20).exp()
    torch.testing.assert_close(negative_aware_norm(positive), positive.mean(-1))


def test_the_norm_is_the_hidden_classifiers_largest_logit_up_to_the_signs_that_differ() -> None:
    """For a two-layer network, image by image and class by class; equal where a class's signs are the features'."""
    network = nn.Sequential(nn.Linear(6, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False)).double()
    nn.init.normal_(network[2].weight, generator=torch.Generator().manual_seed(1))
    weight = network[2].weight.detach()
    features = last_features(network, [draw(30, 6)])
    torch.testing.assert_close(features @ weight.T, network(draw(30, 6)).detach())
    logits = hidden_logits(weight, features)
    for a, row in zip(features, logits, strict=True):
        signs = torch.where(a > 0, 1.0, -1.0)
        for k in range(4):
            differing = torch.where(weight[k] > 0, 1.0, -1.0) - signs
            gap = (a.sum() - row[k]).item()
            assert -1e-12 <= gap <= (a.max() * differing.abs().sum()).item() + 1e-12
        torch.testing.assert_close(hidden_logits(signs[None].double(), a), a.sum()[None])
    assert hidden_logits(torch.zeros(1, 3), torch.tensor([1.0, 2.0, 0.5])).item() == -3.5


def test_a_distance_joined_to_equal_norms_keeps_its_ranking() -> None:
    features = torch.stack(
        [torch.randperm(9, generator=torch.Generator().manual_seed(n)) for n in range(20)]
    ).double()
    distance = draw(20).abs()
    assert torch.equal(joined(distance, features).argsort(), distance.argsort())
    assert joined(torch.ones(2), torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist() == [0.5, math.inf]


def test_entropy_of_units() -> None:
    features = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, -1.0], [1.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
    torch.testing.assert_close(activation_entropy(features), torch.tensor([0.0, math.log(2), 0.0]))


@settings(max_examples=30, deadline=None)
@given(known=st.integers(1, 60), unknown=st.integers(1, 60), levels=st.sampled_from([3, 20, 10**6]),
       seed=st.integers(0, 2**20))  # fmt: skip
def test_auroc_and_fpr95_are_those_of_scikit_learn(known: int, unknown: int, levels: int, seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    inside, outside = (torch.randint(levels, (n,), generator=generator).double() for n in (known, unknown))
    found = separation(inside + levels // 4, outside)
    label, score = [1] * known + [0] * unknown, torch.cat((inside + levels // 4, outside))
    assert found.auroc == pytest.approx(metrics.roc_auc_score(label, score))
    false, true, thresholds = metrics.roc_curve(label, score, drop_intermediate=False)
    first = int(np.argmax(true >= 0.95))
    assert (found.fpr95, found.threshold) == (pytest.approx(false[first]), thresholds[first])


def test_the_three_scores_on_features_made_to_differ_in_one_of_them() -> None:
    """Known inputs have fewer and larger active units at the same L1 norm."""
    inside, outside = torch.zeros(10, 8), torch.zeros(10, 8)
    inside[:, :2], outside[:, :6] = 3.0, 1.0
    found = negative_aware_norms(inside, outside)
    assert (found.nan.auroc, found.l1.auroc, found.sparsity.auroc) == (1.0, 0.5, 1.0)
    assert (found.nan.fpr95, found.l1.fpr95, found.nan.threshold) == (0.0, 1.0, 3.0)
    assert (found.inside_active, found.outside_active) == (0.25, 0.75)


def test_features_are_what_the_last_linear_map_reads() -> None:
    model = networks.build("resnet", {"widths": (4, 8), "depth": 6}, image_size=8, channels=1, num_classes=3)
    images = draw(10, 1, 8, 8).float()
    model.train()
    features = last_features(model, images.split(4))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.eval()
    torch.testing.assert_close(features, model.blocks(model.stem(images)).mean((2, 3)))
    torch.testing.assert_close(model.classifier(features), model(images))
    tokens = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = draw(4, 6, 3)
    torch.testing.assert_close(last_features(tokens, [x]), tokens[:2](x).mean(1))
    with pytest.raises(UserError, match=r"calls no nn\.Linear"):
        last_features(nn.Conv2d(1, 1, 3), [images])


@pytest.fixture
def assay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return int(left.value.code or 0), written.out, written.err

    return run


def write_npy(path: Path, table: Tensor) -> None:
    np.save(path, table.numpy())


def write_csv(path: Path, table: Tensor) -> None:
    np.savetxt(path, table.numpy(), delimiter=",", fmt="%.17g")


def write_safetensors(path: Path, table: Tensor) -> None:
    save_file({"features": table}, path)


@pytest.mark.parametrize("write", [write_npy, write_csv, write_safetensors])
def test_the_command_prints_what_the_function_finds(
    assay: Callable[..., tuple[int, str, str]], tmp_path: Path, write: Callable[[Path, Tensor], None]
) -> None:
    inside, outside = (2 * draw(30, 6)).relu(), draw(20, 6, seed=1).relu()
    paths = [tmp_path / f"{name}.{write.__name__.removeprefix('write_')}" for name in ("inside", "outside")]
    for path, table in zip(paths, (inside, outside), strict=True):
        write(path, table)
        assert torch.equal(read_features(path), table)
    command = ["analyse", "negative-aware-norm", *map(str, paths)]
    found = negative_aware_norms(inside, outside)
    document = json.loads(assay(*command, "--json")[1])
    assert document["nan"] == {"auroc": found.nan.auroc, "fpr95": found.nan.fpr95, "threshold": found.nan.threshold}
    assert document["outside_active"] == found.outside_active
    heading, *rows = assay(*command)[1].splitlines()
    assert heading.split() == ["score", "AUROC", "FPR95", "threshold"]
    assert f"{found.nan.auroc:.3f}" in "".join(rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.npy", None, "cannot read .*absent.npy': No such file"),
        ("absent.safetensors", None, "cannot read .*absent.safetensors': No such file"),
        ("some.pt", b"x", r"some.pt': features are read from \.npy, \.csv, \.safetensors files"),
        ("empty.npy", b"", "is no .npy file of numbers"),
        ("text.npy", b"1,2,3", "is no .npy file of numbers"),
        ("words.csv", b"a,b\n1,2\n", "is no .csv file of numbers"),
        ("ragged.csv", b"1,2\n3\n", "is no .csv file of numbers"),
        ("empty.csv", b"", r"has the shape \[0\]"),
        ("nan.csv", b"1,nan\n", "values that are not finite"),
        ("narrow.csv", b"1,2\n", "features of 2 and of 3 units do not compare"),
        ("broken.safetensors", b"12345678901", "is no .safetensors file of numbers"),
    ],
)
def test_bad_files_are_named_in_one_line(
    assay: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / name
    good.write_text("1,2,3\n")
    if content is not None:
        bad.write_bytes(content)
    status, out, err = assay("analyse", "negative-aware-norm", str(bad), str(good))
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert re.search(message, line)


def test_pickled_objects_and_several_tensors_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, tmp_path / "two.safetensors")
    for name in ("objects.npy", "two.safetensors"):
        with pytest.raises(UserError, match="must hold one table"):
            read_features(tmp_path / name)
