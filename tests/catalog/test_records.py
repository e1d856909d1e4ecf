import importlib.resources
import pkgutil
import tomllib

import pytest

from assay.catalog import areas, paper, papers, symptoms
from assay.catalog.records import read_catalog
from assay.catalog.titles import title_key
from assay.config import assign
from assay.errors import AssayError, UserError

RECORD = """
[alpha]
title = "Alpha"
kind = "technique"
summary = "One line"
treats = ["loss-spike"]
"""
SYMPTOMS = 'loss-spike = "the loss jumps"\n'


def catalog(folder, **files):
    (folder / "symptoms.toml").write_text(SYMPTOMS)
    for area, text in files.items():
        (folder / f"{area}.toml").write_text(text, encoding="utf-8")
    return read_catalog(folder)


def test_a_record_takes_its_slug_and_area_from_its_place(tmp_path):
    read = catalog(tmp_path, norm=RECORD, head="")
    alpha = read.papers["alpha"]
    assert (alpha.slug, alpha.area, alpha.title) == ("alpha", "norm", "Alpha")
    assert (alpha.votes, alpha.date, alpha.arxiv, alpha.claims, alpha.patch) == (0, None, None, (), None)
    assert read.areas == ("head", "norm")
    assert read.symptoms == {"loss-spike": "the loss jumps"}


@pytest.mark.parametrize(
    ("addition", "status"),
    [
        ("", "catalogued"),
        ('patch = { "model.norm" = "alpha" }', "available"),
        ('transform = "alpha"', "available"),
        ('network = "alpha"', "available"),
        ('command = "train"', "available"),
        ('function = "math.sin"', "available"),
    ],
)
def test_status_follows_from_the_way_to_apply_it(tmp_path, addition, status):
    assert catalog(tmp_path, norm=RECORD + addition).papers["alpha"].status == status


def test_claims_are_read_with_their_measure(tmp_path):
    claims = """
[[alpha.claims]]
id = "alpha/loss"
says = "lower loss"
published = "3.0 to 2.9"
measure = { compare = ["baseline", "alpha"], metric = "bits_per_byte", expect = "lower" }
scales = { cpu = { seeds = 7 } }
falsified_by = "no difference at 100M"
seen = "one seed"

[[alpha.claims]]
id = "alpha/speed"
says = "as fast"
published = "no number"
"""
    loss, speed = catalog(tmp_path, norm=RECORD + claims).papers["alpha"].claims
    assert loss.measure == {"compare": ["baseline", "alpha"], "metric": "bits_per_byte", "expect": "lower"}
    assert (loss.scales, loss.falsified_by) == ({"cpu": {"seeds": 7}}, "no difference at 100M")
    assert (loss.seen, speed.seen) == ("one seed", None)
    assert speed.measure == {}
    assert speed.scales == {"cpu": {}, "gpu": {}}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('title = "Alpha"', "", "title"),
        ('title = "Alpha"', 'title = " "', "title"),
        ('kind = "technique"', 'kind = "tecnique"', "kind='tecnique'"),
        ('"loss-spike"', '"loss-spikes"', "unknown symptom 'loss-spikes'; nearest: loss-spike"),
        ("kind =", 'sumary = "s"\nkind =', "unknown field 'sumary'; nearest: summary"),
        ("kind =", "votes = -1\nkind =", "votes=-1"),
        ("kind =", 'date = "2025-02-30"\nkind =', "date"),
        ("kind =", 'date = "Oct 26"\nkind =', "neither YYYY-MM-DD nor --MM-DD"),
        ("kind =", 'arxiv = "25.1"\nkind =', "arxiv='25.1'"),
        ("kind =", "patch = {}\nkind =", "patch={}"),
        ("kind =", 'slug = "beta"\nkind =', "'slug' follows from the file"),
        ("kind =", 'claims = [{id = "beta/x", says = "s", published = "p"}]\nkind =', "'alpha/NAME'"),
        ("[alpha]", "[Alpha]", "slug='Alpha'"),
        ("[alpha]", '["alpha+beta"]', "slug='alpha+beta'"),
        ("[alpha]", "[baseline]", "the arm without techniques"),
    ],
)
def test_a_malformed_record_names_file_record_and_reason(tmp_path, old, new, reason):
    text = RECORD.replace(old, new)
    record = tomllib.loads(text).popitem()[0]
    with pytest.raises(AssayError) as error:
        catalog(tmp_path, norm=text)
    assert str(error.value).startswith(f"catalogue file norm.toml, record {record!r}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_two_claims_cannot_share_an_id(tmp_path):
    claim = '[[alpha.claims]]\nid = "alpha/x"\nsays = "s"\npublished = "p"\n'
    with pytest.raises(AssayError, match="'alpha/x' is used twice"):
        catalog(tmp_path, norm=RECORD + claim + claim)


def test_two_files_cannot_share_a_slug(tmp_path):
    with pytest.raises(AssayError, match=r"norm.toml, record 'alpha': the slug is also used in head.toml"):
        catalog(tmp_path, norm=RECORD, head=RECORD)


def test_a_record_that_is_no_table_and_a_file_that_is_no_toml(tmp_path):
    with pytest.raises(AssayError, match=r"norm.toml, record 'alpha': it is not a table"):
        catalog(tmp_path, norm="alpha = 3")
    with pytest.raises(AssayError, match=r"norm.toml: not valid TOML"):
        catalog(tmp_path, norm="[alpha")
    (tmp_path / "norm.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(AssayError, match=r"norm.toml: it is not UTF-8 text"):
        read_catalog(tmp_path)


def test_a_symptom_is_one_line(tmp_path):
    (tmp_path / "symptoms.toml").write_text("loss-spike = 3")
    with pytest.raises(AssayError, match=r"symptoms.toml, record 'loss-spike'"):
        read_catalog(tmp_path)


def test_the_built_in_catalogue_holds_every_record_of_its_files():
    folder = importlib.resources.files("assay.catalog")
    tables = {
        file.name.removesuffix(".toml"): tomllib.loads(file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    }
    assert symptoms() == tables.pop("symptoms")
    assert areas() == sorted(tables)
    assert {(p.area, p.slug) for p in papers()} == {(a, slug) for a, table in tables.items() for slug in table}
    assert len({title_key(p.title) for p in papers()}) == len(papers())
    for p in papers():
        assert set(p.treats) <= symptoms().keys()
        assert assign({}, p.patch or {}) == assign({}, dict(reversed((p.patch or {}).items())))


def test_what_records_import_is_there():
    named = [paper.function for paper in papers() if paper.function is not None]
    assert [path for path in named if not callable(pkgutil.resolve_name(path))] == []
    assert len(named) >= 4


def test_papers_of_an_area():
    for area in areas():
        assert {p.area for p in papers(area)} == {area}
    assert sum(len(papers(area)) for area in areas()) == len(papers())
    with pytest.raises(UserError, match="unknown area 'nrom'; nearest: norm"):
        papers("nrom")


def test_papers_since_leave_out_unknown_years():
    assert all(p.date >= "2025" for p in papers(since="2025"))
    assert not papers(since="9999")
    assert [p.slug for p in papers("norm", since="2025-10-26") if p.slug == "seednorm"] == ["seednorm"]
    assert [p.slug for p in papers("norm", since="2025-10-27") if p.slug == "seednorm"] == []
    unknown = [p for p in papers() if p.date is None or p.date.startswith("--")]
    assert unknown
    assert not {p.slug for p in unknown} & {p.slug for p in papers(since="0001")}
    with pytest.raises(UserError, match="not a date"):
        papers(since="last year")


def test_a_paper_by_slug():
    seednorm = paper("seednorm")
    assert (seednorm.area, seednorm.arxiv, seednorm.patch) == ("norm", "2510.22777", {"model.norm": "seednorm"})
    with pytest.raises(UserError, match="unknown paper 'seednrm'; nearest: seednorm"):
        paper("seednrm")
