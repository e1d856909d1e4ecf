import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from assay.comparison.statistics import clopper_pearson
from assay.errors import AssayError
from assay.reports import write_reports
from assay.reports.html import html, write_report
from assay.reports.sentences import describe, headline

VOID = {"meta", "line", "input", "wbr", "br"}


class Page(HTMLParser):
    """Tags with attributes, text outside scripts and styles, tables as rows of cells, and figures."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.tables, self.figures, self.open = [], [], [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            if "rowspan" in dict(attributes) and int(dict(attributes)["rowspan"]) < 1:
                raise AssertionError("empty row group")

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attributes = self.tags[-1][1]
            if "data-figure" in attributes:
                assert "<" not in data
                self.figures[attributes["data-figure"]] = json.loads(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data


def page(comparison):
    return Page(html(comparison))


def table(page, first_header):
    """The table with that second column, as dictionaries by header."""
    for header, *rows in page.tables:
        header = [cell.strip() for cell in header]
        if first_header in header:
            return [{k: " ".join(c.split()) for k, c in zip(header, row, strict=True)} for row in rows]
    raise AssertionError(f"no table with {first_header}")


def number(text):
    return float(text.replace("−", "-").replace(",", "").replace("%", "").replace("×", ""))


def test_the_table_of_arms_has_every_number(example):
    comparison = example(6, 4, diverged={(3, 1)})
    for row, arm in zip(table(page(comparison), "Mean ± SD"), comparison.arms, strict=True):
        assert row["Arm"] == arm.name
        mean, deviation = row["Mean ± SD"].split(" ± ")
        assert number(mean) == pytest.approx(arm.mean, abs=6e-5)
        assert number(deviation) == pytest.approx(arm.standard_deviation, abs=6e-5)
        assert row["Diverged"].startswith(f"{arm.diverged} of 4")
        found = arm.compared
        if found is None:
            assert row["Difference"] == row["Verdict"] == ""
            continue
        assert row["Verdict"] == found.verdict
        assert number(row["Difference"]) == pytest.approx(found.mean, abs=6e-5)
        low, high = row["95 % interval"].split(" to ")
        assert (number(low), number(high)) == pytest.approx((found.low, found.high), abs=6e-5)
        assert number(row["Relative"]) == pytest.approx(found.relative, abs=0.006)
        for column, p in (("p", found.p_value), ("Adjusted p", found.p_adjusted)):
            if p < 0.001:
                assert row[column] == "< 0.001"
            else:
                assert number(row[column]) == pytest.approx(p, abs=0.006)
        assert found.detectable <= number(row["Would show"]) <= 1.1 * found.detectable
        assert row["Pairs"] == str(found.pairs)
    low, high = clopper_pearson(1, 4)
    assert f"1 of 4 {100 * low:.0f} to {100 * high:.0f} %" in [
        row["Diverged"] for row in table(page(comparison), "Mean ± SD")
    ]


def test_the_table_of_runs_has_every_run(example):
    comparison = example(3, 2, diverged={(2, 1)})
    rows = table(page(comparison), "Final value")
    runs = [run for arm in comparison.arms for run in arm.runs]
    for row, run in zip(rows, runs, strict=True):
        assert (row["Arm"], row["Seed"], row["Run"]) == (run.arm, str(run.seed), run.id)
        if run.value is None:
            assert row["Final value"] == f"diverged at step {run.diverged_at}"
        else:
            assert number(row["Final value"]) == pytest.approx(run.value, abs=6e-4)
        assert number(row["Tokens"]) == run.tokens
        assert number(row["Seconds"]) == pytest.approx(run.seconds, abs=0.051)
        assert number(row["Tokens/s"]) == pytest.approx(run.tokens_per_second, abs=0.51)
        assert number(row["Parameters"]) == run.parameters
        mantissa, power = row["FLOPs"].split(" × 10")
        exponent = int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")))
        assert float(mantissa) * 10**exponent == pytest.approx(run.flops, rel=0.005)
        assert number(row["Peak memory"].split()[0]) * 2**30 == pytest.approx(run.peak_memory, rel=0.005)


def test_costs_show_all_three_budgets(example):
    comparison = example(3, 2)
    rows = table(page(comparison), "Time")
    assert [number(row["Parameters"].split()[0]) for row in rows] == [
        arm.runs[0].parameters for arm in comparison.arms
    ]
    slower = comparison.arms[1].runs[0].seconds / comparison.arms[0].runs[0].seconds
    assert rows[1]["Time"].endswith(f" +{100 * (slower - 1):.0f} %")
    assert rows[1]["Tokens"] == "983,040"


def test_the_words_are_those_of_the_terminal(example):
    comparison = example(6, 3, diverged={(3, 1)})
    text = page(comparison).text.replace("\u00a0", " ")
    assert headline(comparison) in text
    for arm in comparison.arms[1:]:
        assert f"{arm.name}: {describe(arm, comparison)}." in text
    for value in (*comparison.versions.values(), "983,040 tokens", "wikitext-103", "98,304,000", "16.00 GiB"):
        assert value in text
    assert comparison.command in text
    assert "4 March 2025" in text
    assert "for the 5 arms compared by Holm’s method" in text


def test_configuration_differences(example):
    comparison = example(["baseline", "a+b", "same"], 2)
    same = comparison.arms[2].model_copy(update={"differences": {}})
    comparison = comparison.model_copy(update={"arms": [*comparison.arms[:2], same]})
    found = page(comparison)
    (rows,) = [t[1:] for t in found.tables if "Field" in t[0]]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["a+b", "model.slot0", "rms-norm", "a"]
    assert cells[1] == ["model.slot1", "rms-norm", "b"]
    assert cells[2] == ["same", "nothing: the configuration is baseline’s"]


def test_tuning_marks_what_was_chosen(example):
    comparison = example(3, 2, tuned=True)
    text = html(comparison)
    (rows,) = [t for t in Page(text).tables if "lr ×0.5" in [c.strip() for c in t[0]]]
    assert [cell.strip() for cell in rows[0]] == ["Arm", "lr ×0.5", "lr ×1", "lr ×2"]
    for row, arm in zip(rows[1:], comparison.arms, strict=True):
        scores = [candidate.score for candidate in arm.tuned.candidates]
        assert [number(cell) for cell in row[1:]] == pytest.approx(scores, abs=6e-4)
    assert len(re.findall("<mark>", text)) == 3
    assert "Tuning" not in page(example(3, 2)).text


def test_nothing_is_loaded_from_elsewhere(example):
    found = page(example(4, 2))
    for tag, attributes in found.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcset", "action", "data"} & attributes.keys()
    (policy,) = [a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    text = html(example(4, 2))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert text.count("plotly.js v") == 1


EVIL = ["<b>base</b>", "</script><script>alert(1)</script>", "\"><img src=x onerror='a'>", "{{ 7 * 7 }}+x"]


def test_everything_is_escaped(example):
    comparison = example(
        EVIL,
        2,
        title="<i>t</i></title>",
        unit="<u>bits</u>",
        command="<script>c</script>",
        data={"<k>": "<v>"},
        diverged={(1, 0)},
        tuned=True,
    )
    found = page(comparison)
    harmless = page(example(["baseline", "x", "y", "z+x"], 2, diverged={(1, 0)}, tuned=True))
    assert {tag for tag, _ in found.tags} == {tag for tag, _ in harmless.tags}
    assert [t for t, _ in found.tags].count("script") == [t for t, _ in harmless.tags].count("script")
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    for word in (*EVIL, "<i>t</i></title>", "<u>bits</u>", "<script>c</script>", "<k>", "<v>"):
        assert word in found.text
    assert found.figures["forest"]["layout"]["yaxis"]["ticktext"][0].startswith("&lt;/script")


CASES = {
    "baseline alone": (1, 3, (), {"strip", "validation", "training"}),
    "one seed": (4, 1, (), {"forest", "strip", "validation", "training"}),
    "all diverged": (3, 2, {(a, s) for a in range(3) for s in range(2)}, {"validation", "training"}),
    "baseline diverged": (2, 2, {(0, 0), (0, 1)}, {"strip", "validation", "training"}),
    "many arms": (13, 5, {(11, 0)}, {"forest", "strip", "validation", "training"}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_its_figures_and_no_others(example, case):
    arms, seeds, diverged, figures = CASES[case]
    found = page(example(arms, seeds, diverged=diverged))
    assert set(found.figures) == figures
    places = {a["id"] for tag, a in found.tags if tag == "div" and a.get("class") == "figure"}
    assert places == figures
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", found.text)


def test_a_comparison_without_curves(example):
    comparison = example(2, 2)
    arms = [
        arm.model_copy(update={"runs": [run.model_copy(update={"curve": [], "train": []}) for run in arm.runs]})
        for arm in comparison.arms
    ]
    found = page(comparison.model_copy(update={"arms": arms, "command": None}))
    assert set(found.figures) == {"forest", "strip"}
    assert "Learning curves" not in found.text
    assert "To reproduce" not in found.text


def test_write_report(example, tmp_path):
    comparison = example(2, 2)
    path = write_report(comparison, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert path.read_text(encoding="utf-8") == html(comparison)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(AssayError, match=r"cannot write .*report\.html"):
        write_report(comparison, tmp_path / "file")


def test_write_reports_prints_and_writes(example, tmp_path):
    output = io.StringIO()
    path = write_reports(example(2, 2), tmp_path, Console(file=output))
    assert path.exists()
    assert "seednorm: " in output.getvalue()


def test_importing_reports_loads_no_plotly_jinja_or_scipy():
    code = (
        "import sys, assay.reports, assay.reports.html, assay.reports.terminal, assay.comparison.statistics\n"
        "print([m for m in ('plotly', 'jinja2', 'scipy', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
