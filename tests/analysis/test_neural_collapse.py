from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from assay.analysis.neural_collapse import classifier_inputs, nearby_features, neural_collapse
from assay.cli import main
from assay.errors import UserError


def simplex(classes, hidden, generator):
    """Vertices of a regular simplex around 0, one a row, anywhere in the space."""
    rotation = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator, dtype=torch.float64))[0]
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    return corners @ rotation[:classes]


def example(seed=0, classes=4, hidden=6, sizes=(7, 5, 9, 3)):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    features = torch.randn(len(labels), hidden, generator=generator).double()
    features += 2 * torch.randn(classes, hidden, generator=generator).double()[labels]
    weight = torch.randn(classes, hidden, generator=generator).double()
    return features, labels, weight, torch.randn(classes, generator=generator).double()


def values(found):
    return (found.nc1, found.spread, found.nc2, found.nc3, found.nc4)


@pytest.mark.parametrize("hidden", [5, 9])
def test_collapsed_features_are_at_zero(hidden):
    corners = simplex(5, hidden, torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    found = neural_collapse(3 * corners[labels] + 0.7, labels, 2 * corners, -1.4 * corners.sum(1))
    assert values(found) == pytest.approx((0, 0, 0, 0, 0), abs=1e-12)


def test_by_hand():
    """0, 2 | 5, 7: S_W = 1, S_B = 6.25. The classifier parts at 0, the means at 3.5, so one of four is another's."""
    features, labels = torch.tensor([[0.0], [2.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 1])
    found = neural_collapse(features, labels, torch.tensor([[-1.0], [1.0]]))
    assert values(found) == pytest.approx((0.08, 0.16, 0, 0, 0.25), abs=1e-12)
    found = neural_collapse(features, labels, torch.tensor([[1.0], [1.0]]))
    assert found.nc3 == pytest.approx(2)
    found = neural_collapse(features, labels, torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0, -7.0]))
    assert found.nc4 == 0
    without = neural_collapse(features, labels)
    assert (without.nc3, without.nc4) == (None, None)


def test_simplex_of_means_by_hand():
    """Means 0, 1, 2 on a line, centred −1, 0, 1: MᵀM/‖MᵀM‖ is ½ at the four corners, and (I − ⅓)/√2 the simplex."""
    found = neural_collapse(torch.tensor([[0.0], [1.0], [2.0]]), torch.arange(3))
    gram = np.array([[0.5, 0, -0.5], [0, 0, 0], [-0.5, 0, 0.5]])
    assert found.nc2 == pytest.approx(np.sqrt(np.square(gram - (np.eye(3) - 1 / 3) / np.sqrt(2)).sum()))


def test_scale_place_direction_and_sizes_of_classes_do_not_matter():
    features, labels, weight, bias = example()
    found = neural_collapse(features, labels, weight, bias)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())[0]
    moved = 3 * features @ rotation.T + 5
    turned = weight @ rotation.T
    same = neural_collapse(moved, labels, turned, 3 * bias - 5 * turned.sum(1))
    assert values(same) == pytest.approx(values(found))
    again = torch.cat((torch.arange(len(labels)), (labels == 2).nonzero().flatten()))
    doubled = neural_collapse(features[again], labels[again], weight, bias)
    assert values(doubled)[:4] == pytest.approx(values(found)[:4])


@pytest.mark.parametrize(("hidden", "sizes"), [(6, (7, 5, 9, 3)), (2, (8, 8, 8, 8)), (40, (4, 4, 4, 4))])
def test_is_what_numpy_scipy_and_scikit_learn_make_of_it(hidden, sizes):
    pytest.importorskip("sklearn")
    from scipy.linalg import pinvh
    from sklearn.neighbors import NearestCentroid

    features, labels, weight, bias = example(hidden=hidden, sizes=sizes)
    found = neural_collapse(features, labels, weight, bias)
    x, y, w = features.numpy(), labels.numpy(), weight.numpy()
    means = NearestCentroid().fit(x, y)
    centres = means.centroids_
    within = np.mean([np.cov(x[y == k].T, bias=True).reshape(hidden, hidden) for k in range(4)], 0)
    between = np.cov(centres.T, bias=True).reshape(hidden, hidden)
    assert found.nc1 == pytest.approx(np.trace(within @ pinvh(between, rtol=1e-10)) / 4)
    assert found.spread == pytest.approx(np.trace(within) / np.trace(between))
    m = (centres - centres.mean(0)).T
    gram = m.T @ m
    ideal = (np.eye(4) - 0.25) / np.sqrt(3)
    assert found.nc2 == pytest.approx(np.linalg.norm(gram / np.linalg.norm(gram) - ideal))
    assert found.nc3 == pytest.approx(np.linalg.norm(w.T / np.linalg.norm(w) - m / np.linalg.norm(m)) ** 2)
    predicted = (x @ w.T + bias.numpy()).argmax(1)
    assert found.nc4 == pytest.approx(np.mean(predicted != means.predict(x)))


def test_reads_what_the_classifier_reads():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 4))
    images = torch.randn(5, 1, 6, 6)
    found = classifier_inputs(model, model[4], images)
    torch.testing.assert_close(found, model[1](model[0](images)).flatten(1).detach())
    assert model.training
    with pytest.raises(UserError, match="0 times"):
        classifier_inputs(model, nn.Linear(48, 4), images)


def test_nearby_features_of_the_collapsed_minimiser_stay():
    """λ_W = 0.04 and λ_H = 0.25: c = 0.1 and class means are orthogonal with ‖h̄ₖ‖² = 0.9 √(0.04 / 0.25) = 0.36."""
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())[0]
    labels = torch.arange(12) % 3
    collapsed = 0.6 * rotation[labels]
    for beta in (0.1, 10.0):
        found = nearby_features(collapsed, labels, beta=beta, weight_penalty=0.04, feature_penalty=0.25)
        torch.testing.assert_close(found, collapsed, atol=1e-6, rtol=0)
    assert neural_collapse(collapsed, labels).nc2 == pytest.approx(0, abs=1e-12)


def test_nearby_features_are_those_of_a_joint_minimisation_by_scipy():
    """W and H together, by another optimiser and from the objective as it stands in the paper."""
    from scipy.optimize import minimize

    features, labels, _, _ = example(classes=3, hidden=4, sizes=(4, 4, 4))
    start, y = features.numpy(), np.eye(3)[labels.numpy()]
    beta, lw, lh = 0.5, 0.04, 0.25

    def objective(flat):
        w, h = flat[:12].reshape(3, 4), flat[12:].reshape(12, 4)
        error, gone = h @ w.T - y, h - start
        value = np.square(error).sum() / 24 + lw * np.square(w).sum() / 6
        value += (lh * np.square(h).sum() + beta * np.square(gone).sum()) / 24
        slopes = error.T @ h / 12 + lw * w / 3, error @ w / 12 + (lh * h + beta * gone) / 12
        return value, np.concatenate([slope.ravel() for slope in slopes])

    ridge = np.linalg.solve(start.T @ start + 4 * lw * np.eye(4), start.T @ y).T
    best = minimize(objective, np.concatenate([ridge.ravel(), start.ravel()]), jac=True, tol=1e-14, method="BFGS")
    found = nearby_features(features, labels, beta=beta, weight_penalty=lw, feature_penalty=lh)
    assert found.numpy() == pytest.approx(best.x[12:].reshape(12, 4), abs=1e-5)


def test_what_a_layer_can_do_lowers_the_spread():
    features, labels, _, _ = example(classes=3, hidden=5, sizes=(4, 4, 4))
    spreads = [neural_collapse(features, labels).spread]
    for beta in (1000.0, 100.0, 10.0, 1.0):
        near = nearby_features(features, labels, beta=beta, weight_penalty=0.04, feature_penalty=0.25)
        spreads.append(neural_collapse(near, labels).spread)
    assert spreads == sorted(set(spreads), reverse=True)
    assert spreads[1] == pytest.approx(spreads[0], rel=1e-2)


def test_bad_arguments_of_the_model():
    features, labels, _, _ = example()
    with pytest.raises(UserError, match="unequal numbers"):
        nearby_features(features, labels, beta=1.0, weight_penalty=0.1, feature_penalty=0.1)
    with pytest.raises(UserError, match="above 0"):
        nearby_features(features, labels, beta=0.0, weight_penalty=0.1, feature_penalty=0.1)


@pytest.fixture
def assay(monkeypatch, capsys):
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run


@pytest.fixture
def files(tmp_path):
    features, labels, weight, bias = example()
    np.save(tmp_path / "features.npy", features.numpy().astype(np.float32))
    np.save(tmp_path / "labels.npy", labels.numpy().astype(np.uint8))
    np.save(tmp_path / "weight.npy", weight.numpy())
    save_file({"features": features / 2, "labels": labels.int()}, tmp_path / "both.safetensors")
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    return tmp_path


def test_command_measures_each_file(assay, files):
    arguments = ["neural-collapse", str(files / "features.npy"), str(files / "both.safetensors")]
    arguments += ["--classifier", str(files / "weight.npy"), "--classifier", str(files / "head.safetensors")]
    status, out, err = assay("analyse", *arguments, "--labels", str(files / "both.safetensors"), "--json")
    assert (status, err) == (0, "")
    features, labels, weight, bias = example()
    for row, expected in zip(
        json.loads(out),
        (neural_collapse(features, labels, weight), neural_collapse(features / 2, labels, weight, bias)),
        strict=True,
    ):
        assert [row[name] for name in ("nc1", "spread", "nc2", "nc3", "nc4")] == pytest.approx(
            values(expected), rel=1e-5
        )
    status, out, err = assay("analyse", "neural-collapse", arguments[1], "--labels", str(files / "labels.npy"))
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["features", "NC1", "spread", "NC2", "NC3", "NC4"]
    assert out.splitlines()[1].split()[-2:] == ["–", "–"]


def test_command_says_what_is_wrong_in_one_line(assay, files):
    np.save(files / "short.npy", np.zeros((3, 6)))
    np.save(files / "same.npy", np.ones((24, 6)))
    np.save(files / "nan.npy", np.full((24, 6), np.nan))
    np.save(files / "gap.npy", np.repeat([0, 2], 12))
    np.save(files / "halves.npy", np.full(24, 0.5))
    np.save(files / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    (files / "broken.safetensors").write_bytes(b"abc")
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, files / "two.safetensors")
    for features, labels, classifier, reason in (
        ("short.npy", "labels.npy", None, "a row per example"),
        ("same.npy", "labels.npy", None, "same mean feature"),
        ("nan.npy", "labels.npy", None, "not finite"),
        ("features.npy", "gap.npy", None, "class 1 has no example"),
        ("features.npy", "halves.npy", None, "whole numbers"),
        ("objects.npy", "labels.npy", None, "cannot be read"),
        ("broken.safetensors", "labels.npy", None, "cannot be read"),
        ("two.safetensors", "labels.npy", None, "none is named 'features'"),
        ("features.npy", "labels.npy", "short.npy", "these features need (4, 6)"),
        ("missing.npy", "labels.npy", None, "cannot read"),
        ("features.txt", "labels.npy", None, "neither .npy nor .safetensors"),
    ):
        options = [
            "--labels",
            str(files / labels),
            *(["--classifier", str(files / classifier)] if classifier else []),
        ]
        status, out, err = assay("analyse", "neural-collapse", str(files / features), *options)
        assert (status, out, err.count("\n")) == (2, "", 1), (features, err)
        assert reason in err
    status, _, err = assay(
        "analyse", "neural-collapse", *[str(files / "features.npy")] * 2, *options[:2], "--classifier", "x.npy"
    )
    assert (status, err.count("\n")) == (2, 1)
    assert "2 files of features and 1 classifiers" in err
