import json

from assay.catalog import papers
from assay.catalog.techniques import techniques


def test_the_list_has_one_line_per_technique(assay):
    status, out, err = assay("techniques")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["technique", "area", "treats", "summary"]
    assert len(lines) == 1 + len(techniques())
    for technique, line in zip(techniques(), lines[1:], strict=True):
        assert line.split()[:2] == [technique.slug, technique.area]
        assert ", ".join(technique.treats) in line
        assert line.endswith(technique.summary)


def test_the_list_of_an_area(assay):
    listed = json.loads(assay("techniques", "--area", "norm", "--json")[1])
    assert [technique["slug"] for technique in listed] == [t.slug for t in techniques("norm")]
    assert {"slug": "seednorm", "patch": {"model.norm": "seednorm"}}.items() <= next(
        technique for technique in listed if technique["slug"] == "seednorm"
    ).items()


def test_an_area_without_techniques_says_so(assay, monkeypatch):
    import assay.catalog.techniques as module

    monkeypatch.setattr(module, "techniques", lambda area: [])
    assert assay("techniques", "--area", "norm") == (0, "no techniques found\n", "")
    assert assay("techniques", "--area", "norm", "--json") == (0, "[]\n", "")


def test_show_is_that_of_the_paper(assay):
    shown = assay("techniques", "show", "peri-ln")
    assert shown == assay("papers", "show", "peri-ln")
    assert "  assay train --set model.placement=peri-ln\n  assay compare --arms baseline,peri-ln\n" in shown[1]
    assert assay("techniques", "show", "peri-ln", "--json") == assay("papers", "show", "peri-ln", "--json")


def test_a_transform_is_shown_without_a_training_command(assay, monkeypatch):
    from assay.catalog import records
    from assay.catalog.records import Catalog, Paper

    fields = {"slug": "a", "area": "norm", "title": "A", "kind": "technique", "summary": "s", "treats": []}
    made = Catalog({"a": Paper.parse({**fields, "transform": "rsq"})}, {}, ("norm",))
    monkeypatch.setattr(records, "builtin", lambda: made)
    command = "assay apply a MODEL --text FILE --out DIR"
    assert f"Apply\n  {command}\n  transform 'rsq': changes a trained model\n" in assay("techniques", "show", "a")[1]
    assert json.loads(assay("techniques", "show", "a", "--json")[1])["apply"] == [command]


def test_a_network_is_shown_with_where_it_is(assay):
    shown = assay("techniques", "show", "poincare-resnet")[1]
    assert "Apply\n  network 'poincare-resnet' for images: assay.models.vision.networks\n" in shown


def test_wrong_names_are_one_line_and_status_2(assay):
    unusable = next(paper.slug for paper in papers() if paper.status == "catalogued")
    for arguments, reason in [
        (["show", "peri-lm"], "unknown technique 'peri-lm'; nearest: peri-ln"),
        (["show", unusable], f"{unusable!r} is catalogued but cannot be applied yet"),
        (["--area", "nrom"], "unknown area 'nrom'; nearest: norm"),
    ]:
        status, out, err = assay("techniques", *arguments)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: {reason}")
        assert err.count("\n") == 1
