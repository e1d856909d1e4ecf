import json
import os
import re
import subprocess
import sys

import pytest

from assay.catalog import areas, papers, store

PAGE = """new

Daily Papers

byAK and the community

Jun 9

SeeDNorm: Self-Rescaled Dynamic Normalization

An abstract about zyzzyva beetles.

  • 4 authors
·
Oct 26, 2025 41

Models "Don't" [bold]Rot[/bold]

Nothing rots here.

acme Acme Lab
·
Jun 1 -
"""


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))


@pytest.fixture
def page(tmp_path):
    file = tmp_path / "page.txt"
    file.write_text(PAGE, encoding="utf-8")
    return str(file)


def succeed(result):
    status, out, err = result
    assert (status, err) == (0, "")
    return out


def assert_refused(result, reason, status=2):
    got, out, err = result
    assert (got, out) == (status, "")
    assert err.startswith("error: ")
    assert reason in err
    assert err.index("\n") == len(err) - 1


def test_import_reports_its_counts(assay, page):
    assert succeed(assay("papers", "import", page)) == "2 entries, 2 papers: 2 added, 0 updated, 0 unchanged\n"
    assert succeed(assay("papers", "import", page, page)) == "4 entries, 2 papers: 0 added, 0 updated, 2 unchanged\n"


def test_list_shows_each_paper_in_one_untruncated_line(assay, page):
    succeed(assay("papers", "import", page))
    lines = succeed(assay("papers", "list")).splitlines()
    assert lines[0].split() == ["paper", "area", "date", "votes", "title"]
    assert len(lines) == 1 + len(papers()) + 1
    for paper, line in zip(papers(), lines[1:], strict=False):
        assert line.split()[:2] == [paper.slug, paper.area]
        assert line.endswith(paper.title)
    assert lines[-1].split(maxsplit=4) == [
        "models-don-t-bold-rot-bold",
        "-",
        "--06-01",
        "-",
        'Models "Don\'t" [bold]Rot[/bold]',
    ]


def test_list_by_area_and_since(assay):
    listed = json.loads(succeed(assay("papers", "list", "--area", "norm", "--since", "2025", "--json")))
    assert [paper["slug"] for paper in listed] == [p.slug for p in papers("norm", "2025")]
    assert listed
    assert succeed(assay("papers", "list", "--since", "9999")) == "no papers found\n"
    assert json.loads(succeed(assay("papers", "list", "--since", "9999", "--json"))) == []


def test_search_finds_and_counts_votes_of_the_library(assay, page):
    succeed(assay("papers", "import", page))
    (hit,) = json.loads(succeed(assay("papers", "search", "zyzzyva", "--json")))
    assert (hit["slug"], hit["votes"], hit["area"]) == ("seednorm", 41, "norm")
    assert hit["score"] > 0
    lines = succeed(assay("papers", "search", "self-rescaled", "dynamic", "--limit", "1")).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("seednorm  norm  2025-10-26  41     SeeDNorm: ")


def test_search_without_hits_says_so(assay):
    assert succeed(assay("papers", "search", "zzzqqq")) == "no papers found\n"
    assert succeed(assay("papers", "search", "zzzqqq", "--json")) == "[]\n"


def test_search_takes_operators_as_words(assay):
    assert succeed(assay("papers", "search", "NOT", '"seednorm', "AND", "--limit", "1")).count("\n") == 2


def test_show_says_how_to_apply(assay, page):
    succeed(assay("papers", "import", page))
    text = succeed(assay("papers", "show", "seednorm"))
    lines = text.splitlines()
    assert lines[0] == "SeeDNorm: Self-Rescaled Dynamic Normalization"
    assert lines[1] == "Cai, Zhu, Liu, Min · 2025-10-26 · arXiv:2510.22777 · 41 votes"
    assert lines[2] == "seednorm (norm, technique, available)"
    assert "  assay train --set model.norm=seednorm" in lines
    assert "  assay compare --arms baseline,seednorm" in lines
    at = lines.index("  seednorm/loss")
    assert lines[at + 1] == "    says: lower language-model loss than RMSNorm at equal tokens"
    assert any(line.startswith("    measured by: compare baseline, seednorm; ") for line in lines)
    assert lines[-2:] == ["Abstract", "  An abstract about zyzzyva beetles."]


def test_show_an_imported_paper(assay, page):
    succeed(assay("papers", "import", page))
    assert succeed(assay("papers", "show", "models-don-t-bold-rot-bold")) == (
        'Models "Don\'t" [bold]Rot[/bold]\n'
        "Acme Lab · --06-01 · 0 votes\n"
        "models-don-t-bold-rot-bold (imported)\n\n"
        "Apply\n  cannot be applied here yet\n\n"
        "Abstract\n  Nothing rots here.\n"
    )


def test_show_as_json(assay):
    shown = json.loads(succeed(assay("papers", "show", "seednorm", "--json")))
    assert shown["patch"] == {"model.norm": "seednorm"}
    assert shown["apply"][0] == "assay train --set model.norm=seednorm"
    assert "residual-growth" in shown["treats"]
    assert "seednorm/loss" in [claim["id"] for claim in shown["claims"]]
    assert (shown["transform"], shown["abstract"]) == (None, "")


@pytest.mark.parametrize("slug", [paper.slug for area in areas() for paper in papers(area)[:2]])
def test_every_area_can_be_shown(assay, slug):
    text = succeed(assay("papers", "show", slug))
    assert f"\n{slug} (" in text
    assert json.loads(succeed(assay("papers", "show", slug, "--json")))["slug"] == slug


def test_trending_is_by_votes(assay, page):
    succeed(assay("papers", "import", page))
    listed = json.loads(succeed(assay("papers", "trending", "--limit", "3", "--json")))
    assert listed[0]["slug"] == "seednorm"
    assert [paper["votes"] for paper in listed] == sorted((paper["votes"] for paper in listed), reverse=True)
    assert len(succeed(assay("papers", "trending", "--limit", "3")).splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["show", "seednrm"], "unknown paper 'seednrm'; nearest: seednorm"),
        (["list", "--area", "nrom"], "unknown area 'nrom'; nearest: norm"),
        (["search", "x", "--area", "nrom"], "unknown area 'nrom'; nearest: norm"),
        (["list", "--since", "2025-13"], "since '2025-13' is not a date"),
        (["search", "x", "--since", "now"], "since 'now' is not a date"),
        (["trending", "--since", "1"], "since '1' is not a date"),
        (["trending", "--limit", "0"], "limit 0"),
        (["search", "x", "--limit", "-3"], "limit -3"),
        (["search", ""], "has no word to search for"),
        (["search", '"*"', "--json"], "has no word to search for"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(assay, arguments, reason):
    assert_refused(assay("papers", *arguments), reason)


@pytest.mark.parametrize("arguments", [["search"], ["show"], ["import"], ["list", "--limit"], ["nothing"]])
def test_a_wrong_call_is_status_2(assay, arguments):
    status, out, err = assay("papers", *arguments)
    assert (status, out) == (2, "")
    assert "Traceback" not in err


def test_a_file_that_is_no_page_imports_nothing_of_any(assay, page, tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "other.txt").write_text("Some notes.\n")
    (tmp_path / "line\nbreak").write_text("Some notes.\n")
    for file, reason in [
        (tmp_path / "missing.txt", "missing.txt': No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "binary", "binary' is not a Daily Papers page: it is not UTF-8 text"),
        (tmp_path / "other.txt", "other.txt' is not a Daily Papers page: it has no line 'Daily Papers'"),
        (tmp_path / "line\nbreak", "line\\nbreak' is not a Daily Papers page"),
    ]:
        assert_refused(assay("papers", "import", page, str(file)), reason)
    assert not store.path().exists()


def test_a_damaged_library_is_status_2_and_a_full_disk_1(assay, page, monkeypatch):
    store.path().parent.mkdir()
    store.path().write_bytes(b"not a database")
    for command in (["list"], ["search", "x"], ["show", "seednorm"], ["trending"], ["import", page]):
        assert_refused(assay("papers", *command), f"{store.path()} is damaged; move it away")
    store.path().unlink()
    connect = store._connect

    def small(uri):
        connection = connect(uri)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    monkeypatch.setattr(store, "_connect", small)
    assert_refused(assay("papers", "import", page), "no space left to write", status=1)


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from assay.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        check=False,
    )


def test_the_command_in_a_process_of_its_own(page):
    done = command("papers", "import", page)
    assert (done.returncode, done.stderr) == (0, "")
    shown = command("papers", "show", "seednorm", "--json")
    assert json.loads(shown.stdout)["votes"] == 41
    refused = command("papers", "show", "seednrm")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: unknown paper 'seednrm'; nearest: seednorm")
    assert refused.stderr.count("\n") == 1


def test_columns_are_not_cut_for_a_narrow_environment():
    narrow = command("papers", "list", COLUMNS="40")
    longest = max((paper.title for paper in papers()), key=len)
    assert any(line.endswith(longest) for line in narrow.stdout.splitlines())


def test_no_heavy_package_is_imported():
    script = (
        "import sys\n"
        "from assay.cli import main\n"
        "sys.argv = ['assay', 'papers', 'list']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'plotly', 'scipy', 'datasets'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_gets_a_table_of_its_width(assay, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = re.sub(r"\x1b\[\d*m", "", succeed(assay("papers", "list", "--area", "norm"))).splitlines()
    assert max(map(len, lines)) == 100
    words = " ".join(lines).split()
    assert {paper.slug for paper in papers("norm")} <= set(words)
    assert {word for paper in papers("norm") for word in paper.title.split() if len(word) < 8} <= set(words)
    text = succeed(assay("papers", "show", "seednorm"))
    assert max(map(len, text.splitlines())) <= 100
    assert " ".join(text.split()).startswith("SeeDNorm: Self-Rescaled Dynamic Normalization Cai, ")
