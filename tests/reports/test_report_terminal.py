import io
import re

import pytest
from rich.console import Console

from assay.reports.sentences import describe
from assay.reports.terminal import table


def printed(comparison, **console):
    file = io.StringIO()
    table(comparison, Console(file=file, **console))
    return file.getvalue()


def test_without_a_terminal_nothing_is_cut_or_wrapped(example):
    comparison = example(13, 5, diverged={(11, 0), (9, 2)})
    text = printed(comparison, width=30)
    lines = text.splitlines()
    assert "…" not in text
    assert comparison.title in lines[0]
    for arm in comparison.arms:
        (row,) = [line for line in lines if re.match(rf"│ {re.escape(arm.name)} +│", line)]
        assert (arm.compared.verdict if arm.compared else "baseline") in row
        assert f"{arm.diverged} of 5" in row
        assert f"{arm.runs[0].tokens_per_second:,.0f}" in row
    for arm in comparison.arms[1:]:
        assert f"{arm.name}: {describe(arm, comparison)}".replace("−", "-") in lines
    assert len({len(line) for line in lines if line.startswith("│")}) == 1


def test_numbers_are_those_of_the_comparison(example):
    comparison = example(2, 3)
    arm = comparison.arms[1]
    (row,) = [line for line in printed(comparison).splitlines() if line.startswith("│ seednorm")]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    mean, deviation = map(float, cells[1].split(" ± "))
    difference, low, high = map(float, re.findall(r"[-+][\d.]+", cells[2]))
    found = [mean, deviation, difference, low, high, float(cells[3])]
    expected = [
        arm.mean,
        arm.standard_deviation,
        arm.compared.mean,
        arm.compared.low,
        arm.compared.high,
        arm.compared.p_adjusted,
    ]
    assert found == pytest.approx(expected, abs=5e-4)


def test_a_narrow_terminal_folds_and_cuts_nothing(example):
    text = printed(example(5, 3), width=60, force_terminal=True, color_system=None)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 60


def test_names_are_not_markup(example):
    text = printed(example(["baseline", "[red]x[/red]", "a\\[b"], 2, title="[bold]t"))
    assert "[red]x[/red]: " in text
    assert "a\\[b" in text
    assert "[bold]t" in text


def test_without_utf_8(example):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    table(example(3, 3), Console(file=file))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert " +/- " in text
    assert "seednorm: better by" in text or "seednorm: no difference shown" in text


@pytest.mark.parametrize(
    ("arms", "seeds", "diverged", "expected"),
    [
        (1, 3, (), "baseline"),
        (2, 1, (), "one seed: no interval"),
        (2, 2, {(0, 0), (0, 1), (1, 0), (1, 1)}, "no finite pair"),
        (2, 3, {(1, 0)}, "diverged more"),
        (2, 3, {(0, 0)}, "diverged less"),
    ],
)
def test_every_case_prints(example, arms, seeds, diverged, expected):
    assert expected in printed(example(arms, seeds, diverged=diverged))
