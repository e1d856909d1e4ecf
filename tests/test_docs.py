"""The documentation against the code that it is about."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from assay.catalog.records import papers
from assay.cli.analyse import analyse_app
from assay.data import DataConfig
from assay.diagnostics import diagnostics
from assay.losses import losses
from assay.models import ModelConfig
from assay.models.config import heads, linears, mixers, mlps, norms, placements, positions, residuals
from assay.models.vision import networks
from assay.optim import averages, constraints, gradients, optimizers, schedules, selections, transfers
from assay.training.config import TrainingConfig
from assay.training.start import starts
from assay.transforms import transforms
from assay.transforms.tuning import Tuning

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("config", [ModelConfig, DataConfig, TrainingConfig])
def test_every_field_is_documented(config: type) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert [field for field in config.model_fields if f"`{field}`" not in page] == []


def test_every_component_is_documented() -> None:
    pages = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in ("models", "configuration", "optimizers"))
    registries = (
        norms,
        placements,
        residuals,
        mixers,
        mlps,
        linears,
        positions,
        heads,
        optimizers,
        transfers,
        schedules,
        gradients,
        selections,
        constraints,
        averages,
        starts,
        losses,
        networks,
    )
    assert [name for registry in registries for name in registry if f"`{name}`" not in pages] == []


def test_every_transform_is_documented_with_its_options() -> None:
    page = (ROOT / "docs" / "apply.md").read_text()
    options = {name for transform in transforms for name in inspect.signature(transforms[transform]).parameters}
    assert [name for name in {*transforms, *options, *Tuning.model_fields} if f"`{name}`" not in page] == []


def test_every_analysis_has_a_command_and_a_page_that_the_index_names() -> None:
    commands = {command.name for command in analyse_app.registered_commands}
    index = (ROOT / "docs" / "analyse" / "index.md").read_text()
    assert {page.stem for page in ROOT.glob("docs/analyse/*.md")} - {"index"} == commands
    assert [name for name in commands if f"({name}.md)" not in index] == []
    catalogued = {paper.analysis.split()[0] for paper in papers() if paper.analysis is not None}
    assert catalogued == commands


def test_every_diagnostic_is_documented_and_those_of_the_catalogue_exist() -> None:
    page = (ROOT / "docs" / "diagnose.md").read_text()
    assert [name for name in diagnostics if f"`{name}`" not in page] == []
    assert [name for paper in papers() for name in paper.diagnostics if name not in diagnostics] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
