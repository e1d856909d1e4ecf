import dataclasses
import io
import json
import math
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from assay.diagnostics import Finding, Result
from assay.diagnostics.diagnosis import Diagnosis, treatments
from assay.errors import AssayError
from assay.reports.diagnosis import changes, print_findings, write_diagnosis
from assay.reports.diagnosis_html import html, linked, measured
from assay.reports.diagnosis_plots import PLOTS, plots
from assay.training.diagnose import diagnose

ABOUT = {
    "architecture": "LlamaForCausalLM",
    "layers": 3,
    "hidden_size": 8,
    "parameters": 1_234_567,
    "tokens": 512,
    "window": 64,
    "domains": ("code", "prose"),
}
SINK = Finding(
    "attention-sinks",
    "attention-sink",
    "heads give the first token 60% of their attention",
    0.6,
    0.3,
    "Gu et al., 2024, arXiv:2410.10781",
    "these heads mostly do nothing",
    tuple({"layer": i, "head": i % 2, "share": 0.9 - i / 100} for i in range(11)),
    2.0,
)
BROKEN = Finding("weights", "divergence", "3 weights are NaN", 3, 0, "none is", "it diverged", (), math.inf)
LARGE = Finding("massive-activations", "massive-activation", "a value of 9e9", 9e9, 1e3, "chosen", "bad", (), 9e6)


def made(*findings, model="a-model", skipped=None, **results):
    """A diagnosis of ``results``, scalars and arrays by diagnostic, with findings put where they belong."""
    names = dict.fromkeys([*(name.replace("_", "-") for name in results), *(f.diagnostic for f in findings)])
    parts = {name.replace("_", "-"): result for name, result in results.items()}
    by_name = {
        name: Result(*parts.get(name, ({}, {})), [f for f in findings if f.diagnostic == name]) for name in names
    }
    return Diagnosis(model, ABOUT, by_name, skipped or {})


class Page(HTMLParser):
    """Tags with attributes, text outside scripts and styles, tables as rows of cells, figures by their title."""

    def __init__(self, diagnoses):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.tables, self.data, self.open, self.ids = [], [], [], {}, [], {}
        self.source = html(diagnoses)
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())
        self.figures = {label: [self.data[id] for id in ids] for label, ids in self.ids.items()}

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag not in {"meta", "line", "br"}:
            self.open.append(tag)
        if found.get("class") == "figure":
            self.ids.setdefault(found["aria-label"].split(";")[0], []).append(found["id"])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        assert tag in {"meta", "line", "br"}
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            figure = self.tags[-1][1].get("data-figure")
            if figure:
                assert "<" not in data
                self.data[figure] = json.loads(data, parse_constant=pytest.fail)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data

    def rows(self, *header):
        """Of all tables with that header."""
        found = [[[" ".join(cell.split()) for cell in row] for row in table] for table in self.tables]
        return [row for table in found if tuple(table[0]) == header for row in table[1:]]


@pytest.fixture(scope="module")
def small():
    def model(layers):
        torch.manual_seed(layers)
        config = LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        return LlamaForCausalLM(config).eval()

    return [
        diagnose(model(layers), tokenizer="bytes", tokens=256, length=64, gradients=gradients)
        for layers, gradients in ((3, True), (2, False))
    ]


def test_changes_are_those_that_both_have_the_farthest_from_one_first():
    first = made(a=({"double": 2.0, "same": 5.0, "none": 0.0, "eighth": 8.0, "sign": -1.0, "gone": 1.0}, {}))
    second = made(a=({"double": 4.0, "same": 5.0, "none": 0.0, "eighth": 1.0, "sign": 1.0, "new": 1.0}, {}))
    rows = changes(first, second)
    assert [(row["measure"], row["ratio"]) for row in rows] == [
        ("a.sign", -1.0),
        ("a.eighth", 0.125),
        ("a.double", 2.0),
        ("a.none", 1.0),
        ("a.same", 1.0),
    ]
    assert (rows[1]["first"], rows[1]["second"]) == (8.0, 1.0)
    (from_zero,) = changes(made(a=({"x": 0.0}, {})), made(a=({"x": 3.0}, {})))
    assert from_zero["ratio"] is None


def printed(diagnosis):
    output = io.StringIO()
    print_findings(diagnosis, Console(file=output, width=160))
    return output.getvalue()


def test_the_terminal_shows_the_worst_first_with_places_and_commands():
    text = printed(made(SINK, BROKEN, LARGE, skipped={"voids": "no layers"}))
    assert "a-model: LlamaForCausalLM, 3 layers, 1.2M parameters, 512 tokens: 3 findings" in text
    order = [text.index(line) for line in ("1. divergence", "2. massive-activation", "3. attention-sink")]
    assert order == sorted(order)
    assert "1. divergence (weights, broken)" in text
    assert "3. attention-sink (attention-sinks, 2 × the threshold)" in text
    assert "layer 0, head 0, share 0.9; layer 1, head 1, share 0.89; layer 2, head 0, share 0.88; and 8 more" in text
    assert "0.3: Gu et al., 2024, arXiv:2410.10781" in text
    assert all(f"{found.command}  # {found.standing}" in text for found in treatments(SINK)[:3])
    assert "not measured: voids: no layers" in text
    assert "512 tokens: 1 finding\n" in printed(made(SINK))


def test_both_files_are_written(tmp_path):
    diagnosis = made(SINK, BROKEN, residual_norms=({"growth": math.inf}, {"rms": [1.0, math.nan]}))
    path = write_diagnosis([diagnosis], tmp_path / "new" / "folder", Console(file=io.StringIO()))
    assert path.read_text(encoding="utf-8") == html([diagnosis])
    document = json.loads((path.parent / "findings.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert [found["symptom"] for found in document["findings"]] == ["divergence", "attention-sink"]
    assert document["measurements"]["residual-norms"] == {"scalars": {"growth": None}, "arrays": {"rms": [1.0, None]}}
    assert len(document["findings"][1]["where"]) == 11
    (tmp_path / "file").write_text("")
    with pytest.raises(AssayError, match="cannot write"):
        write_diagnosis([diagnosis], tmp_path / "file", Console(file=io.StringIO()))


def test_two_models_are_written_side_by_side(tmp_path):
    first = made(SINK, model="one", residual_norms=({"growth": 2.0}, {}))
    second = made(LARGE, model="two", residual_norms=({"growth": 6.0}, {}))
    output = io.StringIO()
    path = write_diagnosis([first, second], tmp_path, Console(file=output, width=120))
    document = json.loads((path.parent / "findings.json").read_text(encoding="utf-8"))
    assert (document["model"], document["other"]["model"]) == ("one", "two")
    assert document["changes"] == [{"measure": "residual-norms.growth", "first": 2.0, "second": 6.0, "ratio": 3.0}]
    assert "gone in the second model: attention-sink" in output.getvalue()
    assert "new in the second model: massive-activation" in output.getvalue()


def test_the_page_shows_each_finding_worst_first():
    page = Page([made(SINK, BROKEN)])
    assert "2 findings. The worst: 3 weights are NaN." in page.text
    assert page.text.index("1. divergence broken") < page.text.index("2. attention-sink 2 × the threshold")
    for word in (SINK.says, SINK.means, "0.3: Gu et al., 2024, arXiv:2410.10781", "1,234,567", "code, prose"):
        assert word in page.text
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert "https://arxiv.org/abs/2410.10781" in links
    rows = page.rows("layer", "head", "share")
    assert rows == [[str(p["layer"]), str(p["head"]), f"{p['share']:.4g}"] for p in SINK.where]
    assert "and 3 more" in page.text
    for found in treatments(SINK):
        assert f"{found.paper.slug}: {found.paper.summary}" in page.text
        assert f" {found.standing}" in page.text
        assert found.command in page.text
        assert f"https://arxiv.org/abs/{found.paper.arxiv}" in links
    assert "No finding: nothing that was measured passes its threshold." in Page([made()]).text


def test_every_number_is_in_a_table(small):
    diagnosis, _ = small
    page = Page([diagnosis])
    scalars = {row[0]: row[1] for row in page.rows("Of the whole model", "Value") if len(row) == 2}
    for result in diagnosis.results.values():
        assert result.scalars.keys() <= scalars.keys()
    assert scalars["growth"] == measured(diagnosis.results["residual-norms"].scalars["growth"])
    by_layer = next(table for table in page.tables if "residual-norms: rms" in table[0])
    column = by_layer[0].index("residual-norms: rms")
    assert [row[column] for row in by_layer[1:]] == [
        measured(value) for value in diagnosis.results["residual-norms"].arrays["rms"]
    ]
    matrices = diagnosis.results["weight-spectra"].arrays["matrices"]
    rows = page.rows("matrix", "tail exponent", "outliers", "low rankness", "stable rank")
    assert [row[0] for row in rows] == [row["matrix"] for row in matrices]
    heads = page.rows("layer", "0", "1", "2", "3")
    entropy = diagnosis.results["attention-logits"].arrays["entropy"]
    assert [measured(x) for x in entropy[2]] in [row[1:] for row in heads]


def test_a_full_diagnosis_has_all_figures_and_a_partial_one_only_its_own(small):
    assert set(Page(small[:1]).figures) == {spec.title for spec in PLOTS}
    alone = made(residual_norms=({}, {"rms": [1.0, 2.0, 3.0]}), skipped={"voids": "nothing to measure"})
    page = Page([alone])
    assert set(page.figures) == {"Size of the residual stream"}
    assert "Use of depth" not in page.text
    assert "voids: nothing to measure" in page.text
    assert Page([made()]).figures == {}


def traces(page, title, which=0):
    return {trace.get("name"): trace for trace in page.figures[title][which]["data"]}


def test_lines_have_the_numbers_to_five_digits():
    page = Page([made(residual_norms=({}, {"rms": [1.23456789, math.nan, 3e-7], "peak": [1.0, 2.0, None]}))])
    found = traces(page, "Size of the residual stream")
    assert found["rms"]["x"] == [0, 1, 2]
    assert found["rms"]["y"] == [1.2346, None, 3e-7]
    assert found["first token’s peak"]["y"] == [1.0, 2.0, None]
    layout = page.figures["Size of the residual stream"][0]["layout"]
    assert layout["yaxis"]["type"] == "log"
    assert all(math.log10(tick) == round(math.log10(tick)) for tick in layout["yaxis"]["tickvals"])


def test_thresholds_are_drawn_where_findings_begin():
    page = Page([made(massive_activations=({}, {"largest": [5.0, 2000.0], "ratio": [10.0, 9000.0]}))])
    found = traces(page, "Massive activations")
    assert {name for name in found if name.startswith("threshold")} == {"threshold 100", "threshold 1000"}
    assert found["threshold 1000"]["y"] == [1000, 1000]


def test_heat_maps_have_a_column_for_each_layer():
    shares = [[0.111111111, 0.2], [0.3], [0.5, math.nan]]
    page = Page([made(attention_sinks=({}, {"first_token": shares}))])
    (trace,) = page.figures["Attention to the first token"][0]["data"]
    assert trace["z"] == [[0.11111, 0.3, 0.5], [0.2, None, None]]
    assert (trace["zmin"], trace["zmax"]) == (0, 1)


def test_heads_are_shown_beside_the_median_of_their_layer():
    page = Page([made(head_activity=({}, {"activity": [[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]}))])
    (trace,) = page.figures["What heads write"][0]["data"]
    assert trace["z"] == [[0.5, None], [1.0, None], [2.0, None]]


def test_influence_is_shown_of_later_layers_and_one_outlier_does_not_fade_the_rest():
    table = [[0.0, 2.0, 3.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]
    page = Page([made(layer_skipping=({}, {"influence": table}))])
    (trace,) = page.figures["Influence of layers on later ones"][0]["data"]
    assert trace["z"] == [[None, 2, 3], [None, None, 4], [None, None, None]]
    assert trace["zmax"] == 4
    wide = [[0.5 + column / 100 for column in range(30)] for _ in range(30)]
    wide[3][7] = 1000.0
    (trace,) = Page([made(layer_skipping=({}, {"influence": wide}))]).figures["Influence of layers on later ones"][0][
        "data"
    ]
    assert trace["z"][3][7] == 1000
    assert 0.5 < trace["zmax"] < 1


def test_exponents_are_grouped_by_kind_of_matrix():
    names = ["model.layers.0.attn.c_proj.weight", "h.1.attn.c_proj.weight", "h.1.mlp.c_proj.weight", "lm_head.weight"]
    rows = [{"matrix": name, "tail_exponent": 2.0 + i} for i, name in enumerate(names)]
    rows += [{"matrix": "h.1.mlp.experts.5.up.weight", "tail_exponent": math.nan}]
    page = Page([made(weight_spectra=({}, {"matrices": rows}))])
    found = traces(page, "Tail exponents of weight matrices")
    assert found.keys() == {"attn.c_proj", "mlp.c_proj"}
    assert (found["attn.c_proj"]["x"], found["attn.c_proj"]["y"]) == ([0, 1], [2, 3])
    (band,) = page.figures["Tail exponents of weight matrices"][0]["layout"]["shapes"]
    assert (band["y0"], band["y1"]) == (2, 6)


def test_numbers_that_are_not_finite_break_nothing():
    nothing = [math.nan, math.inf, None]
    finding = dataclasses.replace(SINK, value=math.nan, excess=math.nan, where=({"layer": 0, "share": math.nan},))
    page = Page(
        [
            made(
                finding,
                BROKEN,
                residual_norms=({"growth": math.inf, "rms": math.nan}, {"rms": nothing, "peak": nothing}),
                attention_sinks=({"drain": -math.inf}, {"first_token": [nothing], "value_drain": [nothing]}),
                layer_skipping=({}, {"cost": nothing, "influence": [nothing, nothing, nothing]}),
                head_activity=({}, {"activity": [nothing]}),
                weight_spectra=({}, {"matrices": [{"matrix": "h.1.q.weight", "tail_exponent": math.nan}]}),
            )
        ]
    )
    scalars = {row[0]: row[-1] for row in page.rows("Of the whole model", "Value")}
    assert (scalars["growth"], scalars["rms"], scalars["drain"]) == ("∞", "–", "−∞")
    assert traces(page, "Size of the residual stream")["rms"]["y"] == [None, None, None]
    assert "Tail exponents of weight matrices" not in page.figures
    assert not {"nan", "inf", "None", "Undefined"} & set(page.text.replace(":", " ").split())


def test_two_models_share_the_axes_of_lines_and_the_scale_of_heat_maps(small):
    page = Page(small)
    lines = page.figures["Size of the residual stream"]
    drawn = [trace for trace in lines[0]["data"] if trace["x"] != [None]]
    assert len(lines) == 1
    assert [len(trace["y"]) for trace in drawn] == [3, 2, 3, 2]
    assert len({trace["line"]["color"] for trace in drawn}) == 2
    heat = page.figures["Value drain"]
    assert len(heat) == 2
    assert heat[0]["data"][0]["zmax"] == heat[1]["data"][0]["zmax"] > 0
    assert len(page.figures["Gradient norms"]) == 1
    assert "LlamaForCausalLM (1) and LlamaForCausalLM (2)" in page.text


def test_two_models_are_told_what_came_and_went():
    twice = dataclasses.replace(LARGE, excess=2.0)
    first = made(SINK, LARGE, model="/models/a/last", residual_norms=({"growth": 2.0}, {}))
    second = made(BROKEN, twice, model="/models/b/last", residual_norms=({"growth": 3.0}, {}))
    page = Page([first, second])
    names = ("a/last", "b/last")
    found = {row[0]: row[2:] for row in page.rows("Finding", "Diagnostic", *names, "")}
    assert found == {
        "massive-activation": ["9,000,000 × the threshold", "2 × the threshold", "in both"],
        "attention-sink": ["2 × the threshold", "–", "gone"],
        "divergence": ["–", "broken", "new"],
    }
    assert "2 findings in a/last; 2 findings in b/last." in page.text
    assert page.rows("Measure", *names, "Ratio") == [["residual-norms.growth", "2", "3", "1.5"]]
    assert "gone" not in Page([first]).text


EVIL = "</script><script>alert(1)</script>\"><img src=x onerror='a'>{{ 7 * 7 }}"


def test_everything_is_escaped():
    def one(word):
        finding = dataclasses.replace(
            SINK, symptom=word, says=word, means=word, source=word, where=({word: 1, "layer": word},)
        )
        rows = [{"matrix": f"h.1.{word}.weight", "tail_exponent": 3.0, word: word}]
        return made(
            finding,
            model=word,
            skipped={word: word},
            weight_spectra=({word: 1.0}, {"matrices": rows}),
            residual_norms=({}, {"rms": [1.0, 2.0]}),
        )

    for count in (1, 2):
        evil = Page([one(EVIL), one(f"{EVIL} too")][:count])
        harmless = Page([one("word"), one("word too")][:count])
        assert [tag for tag, _ in evil.tags] == [tag for tag, _ in harmless.tags]
        assert not any(name.startswith("on") for _, attributes in evil.tags for name in attributes)
        assert evil.text.count(EVIL) == harmless.text.count("word")


def test_nothing_is_loaded_from_elsewhere():
    page = Page([made(SINK, residual_norms=({}, {"rms": [1.0, 2.0]}))])
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "action", "data"} & attributes.keys()
        if "href" in attributes:
            assert tag == "a"
            assert attributes["href"].startswith("https://arxiv.org/abs/")
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert page.source.count("plotly.js v") == 1


def test_figures_of_many_layers_and_heads_stay_small():
    layers, heads = 30, 9
    grid = [[1 / (3 + layer * heads + head) for head in range(heads)] for layer in range(layers)]
    line = [math.pi**layer for layer in range(layers)]
    diagnosis = made(
        attention_sinks=({}, {"first_token": grid, "value_drain": grid}),
        attention_logits=({}, {"entropy": grid, "largest_logit": grid}),
        residual_norms=({}, {"rms": line, "peak": line}),
        layer_skipping=({}, {"cost": line, "influence": [[1 / (1 + i + j) for i in range(30)] for j in range(30)]}),
    )
    sizes = [len(f.to_json()) for plot in plots([diagnosis], ["x"]) for f in plot.figures.values()]
    assert len(sizes) == 7
    assert max(sizes) < 20_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (-0.0, "0"),
        (12345.678, "12,346"),
        (-2.5, "−2.5"),
        (1.5e-6, "1.5e−06"),
        (1234567, "1,234,567"),
        (math.inf, "∞"),
        (math.nan, "–"),
        (None, "–"),
        ("h.0.weight", "h.0.weight"),
    ],
)
def test_measured(value, text):
    assert measured(value) == text


def test_arxiv_numbers_become_links():
    text = str(linked("<b> Gu, arXiv:2410.10781, and arXiv:hep-th/9901001."))
    assert text.startswith('&lt;b&gt; Gu, <a href="https://arxiv.org/abs/2410.10781"')
    assert ">arXiv:hep-th/9901001</a>." in text
