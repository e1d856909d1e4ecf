import itertools

import pytest

from assay.reports import plots
from assay.reports.curves import AXES


def markers(figure, symbol):
    return [trace for trace in figure.data if trace.mode == "markers" and trace.marker.symbol == symbol]


def test_forest_shows_each_mean_interval_and_pair(example):
    comparison = example(5, 4)
    figure = plots.forest(comparison)
    diamonds = markers(figure, "diamond")
    intervals = [trace for trace in figure.data if trace.mode == "lines"]
    pairs = markers(figure, "circle")
    baseline = {run.seed: run.value for run in comparison.baseline.runs}
    for row, arm in enumerate(comparison.arms[1:]):
        assert (diamonds[row].x, diamonds[row].y) == ((arm.compared.mean,), (row,))
        assert intervals[row].x == (arm.compared.low, arm.compared.high)
        assert pairs[row].x == pytest.approx([run.value - baseline[run.seed] for run in arm.runs])
        filled = diamonds[row].marker.color != "white"
        assert filled == (arm.compared.verdict in ("better", "worse"))
    low, high = figure.layout.xaxis.range
    assert low < 0 < high
    assert all(low < value < high for trace in figure.data for value in trace.x)


@pytest.mark.parametrize(("lower_is_better", "words"), [(True, "← better"), (False, "← worse")])
def test_forest_says_which_side_is_better(example, lower_is_better, words):
    comparison = example(2, 3, lower_is_better=lower_is_better)
    texts = [annotation.text for annotation in plots.forest(comparison).layout.annotations]
    assert words in texts
    assert {"← better", "better →"} & set(texts)
    assert {"← worse", "worse →"} & set(texts)


def test_forest_says_where_no_pair_finished(example):
    comparison = example(3, 2, diverged={(1, 0), (1, 1)})
    figure = plots.forest(comparison)
    (note,) = [a for a in figure.layout.annotations if a.text == "no pair finished"]
    assert note.y == 0
    assert figure.layout.yaxis.ticktext == ("seednorm<br><i>2 of 2 diverged</i>", "peri-ln")
    assert len(markers(figure, "diamond")) == 1


def test_strip_joins_the_runs_of_one_seed(example):
    comparison = example(4, 3, diverged={(2, 1)})
    figure = plots.strip(comparison)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [line.x for line in lines] == [tuple(arm.runs[seed].value for arm in comparison.arms) for seed in range(3)]
    assert lines[1].x[2] is None
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert dots[2].x == (comparison.arms[2].runs[0].value, comparison.arms[2].runs[2].value)
    assert dots[2].customdata == (0, 2)


@pytest.mark.parametrize("draw", [plots.validation, plots.training])
def test_every_trace_of_a_curve_can_be_switched(example, draw):
    comparison = example(4, 3, diverged={(2, 1)})
    for trace in draw(comparison).data:
        assert set(trace.meta["x"]) == set(AXES)
        assert all(len(xs) == len(trace.y) for xs in trace.meta["x"].values())
        assert tuple(trace.meta["x"]["tokens"]) == trace.x
        assert trace.line.color in (None, plots.style(trace.meta["arm"])[0])


def test_validation_ends_at_the_mean_final_value(example):
    comparison = example(3, 3, diverged={(2, 1)})
    solid = [t for t in plots.validation(comparison).data if t.mode == "lines" and t.line.width == 2]
    assert [trace.y[-1] for trace in solid] == pytest.approx([arm.mean for arm in comparison.arms])
    bands = [t for t in plots.validation(comparison).data if t.fill == "toself"]
    for band, arm in zip(bands, comparison.arms, strict=True):
        values = [run.value for run in arm.runs if run.value is not None]
        middle = len(band.y) // 2
        assert band.y[middle - 1] == pytest.approx(min(values))
        assert band.y[middle] == pytest.approx(max(values))
    crosses = markers(plots.validation(comparison), "x")
    assert [cross.meta["arm"] for cross in crosses] == [2]


def test_names_are_not_tags_or_variables(example):
    comparison = example(["<b>a</b>", "50%{y}&"], 2)
    figure = plots.forest(comparison).to_json() + plots.validation(comparison).to_json()
    assert "50&#37;{y}&amp;" in figure
    assert "50%{y}" not in figure
    assert "<b>a</b>" not in figure
    assert plots.strip(comparison).layout.yaxis.ticktext[0] == "&lt;b&gt;a&lt;/b&gt;"


def test_styles_differ_for_eighteen_arms_and_the_baseline():
    styles = [plots.style(index) for index in range(19)]
    assert all(one != other for one, other in itertools.combinations(styles, 2))
    assert all(colour != plots.BASELINE for colour, _, _ in styles[1:])


def test_long_names_are_broken_at_plus(example):
    comparison = example(["baseline", "peri-ln+gated-attention+layernorm-scaling"], 2)
    (label,) = plots.forest(comparison).layout.yaxis.ticktext
    assert label == "peri-ln+gated-attention+<br>layernorm-scaling"
