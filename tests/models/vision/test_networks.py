from __future__ import annotations

from assay.catalog import papers
from assay.models.vision import networks


def test_networks_of_the_catalogue_exist() -> None:
    named = {paper.network for paper in papers()} - {None}
    assert named == {name for name in networks if name != "resnet"}
