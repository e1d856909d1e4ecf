from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assay.errors import AssayError, UserError
from assay.registry import Registry


class Near:
    """A built-in component."""


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside", raising=False)
    registry: Registry[Any] = Registry("thing")
    registry.register("near")(Near)
    return registry


def write_distribution(folder: Path, entry_points: str, source: str) -> None:
    """A module ``outside`` with the metadata that an installer leaves beside it."""
    (folder / "outside.py").write_text(source)
    info = folder / "outside_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


FAR = """
class Far:
    def __init__(self, size: int, *, k: int = 2) -> None:
        self.given = size, k
"""


def test_entry_points_add_components(things: Registry[Any], tmp_path: Path) -> None:
    write_distribution(tmp_path, "[assay.thing]\nfar = outside:Far\n[assay.other]\nelse = outside:Far\n", FAR)
    assert things.names() == ["far", "near"]
    assert "far" in things
    assert "outside" not in sys.modules
    assert things.build("far", {"k": "4"}, size=1).given == (1, 4)
    assert things["far"] is things["far"]
    with pytest.raises(UserError, match="unknown thing 'fra'; nearest: far"):
        things["fra"]
    with pytest.raises(UserError, match="thing 'far' has no option 'kk'; nearest: k"):
        things.validate("far", {"kk": 1})


def test_a_built_in_component_comes_first(things: Registry[Any], tmp_path: Path) -> None:
    write_distribution(tmp_path, "[assay.thing]\nnear = outside:Far\n", FAR)
    assert things.names() == ["near"]
    assert things["near"] is Near


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import missing_dependency\n", "ModuleNotFoundError: No module named 'missing_dependency'"),
        ("", "AttributeError: module 'outside' has no attribute 'Far'"),
        ("raise RuntimeError('no licence')\n", "RuntimeError: no licence"),
    ],
)
def test_a_broken_distribution_stops_only_those_who_ask_for_it(
    things: Registry[Any], tmp_path: Path, source: str, reason: str
) -> None:
    write_distribution(tmp_path, "[assay.thing]\nfar = outside:Far\n", source)
    assert things.names() == ["far", "near"]
    assert isinstance(things.build("near"), Near)
    with pytest.raises(AssayError) as caught:
        things.build("far")
    assert str(caught.value) == f"thing 'far' of outside-parts cannot be loaded from outside:Far: {reason}"


PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "assay-dummy-norm"
version = "0.1"

[project.entry-points."assay.norm"]
dummy-norm = "assay_dummy_norm:DummyNorm"

[tool.setuptools]
py-modules = ["assay_dummy_norm"]
"""

DUMMY_NORM = """
import torch


class DummyNorm(torch.nn.Module):
    def __init__(self, hidden_size: int, *, factor: float = 2.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((hidden_size,), factor))

    def forward(self, x):
        return self.weight * x
"""

USE = """
import json, sys
import torch
from assay.config import assign, parse_assignment
from assay.errors import UserError
from assay.models import Decoder, ModelConfig
from assay.nn.norm import norms

found = {"names": norms.names(), "loaded_early": "assay_dummy_norm" in sys.modules}
fixed = {"model": {"depth": 1, "hidden_size": 8, "vocab_size": 5, "max_length": 4}}
named = assign(fixed, [parse_assignment("model.norm=dummy-norm")])
model = Decoder(ModelConfig.parse(named["model"]))
found["norms"] = [type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__]
x = torch.ones(8)
found["default"] = model.final_norm(x).tolist()
with_option = assign(named, [parse_assignment("model.norm.factor=0.5")])
config = ModelConfig.parse(with_option["model"])
found["option"] = Decoder(config).final_norm(x).tolist()
found["dump"] = config.dump()["norm"]
found["logits"] = list(model(torch.tensor([[0, 1, 2]])).shape)
try:
    ModelConfig.parse({"norm": {"name": "dummy-norm", "factr": 1}})
except UserError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def test_an_installed_package_is_reached_by_name(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "assay_dummy_norm.py").write_text(DUMMY_NORM)
    install = "-m pip install --quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
    subprocess.run([sys.executable, *install.split(), "--target", str(site), str(source)], check=True, timeout=120)
    result = subprocess.run(
        [sys.executable, "-c", USE],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert "dummy-norm" in found["names"]
    assert "rms-norm" in found["names"]
    assert not found["loaded_early"]
    assert found["norms"] == ["DummyNorm"] * 3
    assert found["default"] == [2.0] * 8
    assert found["option"] == [0.5] * 8
    assert found["dump"] == {"name": "dummy-norm", "factor": 0.5}
    assert found["logits"] == [1, 3, 5]
    assert found["error"] == "norm: norm 'dummy-norm' has no option 'factr'; nearest: factor"
