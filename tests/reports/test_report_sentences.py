import re

import pytest

from assay.comparison.result import Difference
from assay.reports.sentences import describe, headline


def compared(example, seeds=3, diverged=(), names=("baseline", "x"), **found):
    """What is said of the second arm if its difference is ``found``."""
    comparison = example(names, seeds, diverged=diverged)
    baseline, arm, *others = comparison.arms
    arm = arm.model_copy(update={"compared": Difference(**found)})
    comparison = comparison.model_copy(update={"arms": [baseline, arm, *others]})
    return describe(arm, comparison), comparison


SHOWN = {"pairs": 3, "mean": -0.012, "low": -0.016, "high": -0.008, "p_value": 0.01, "p_adjusted": 0.01}


def test_better_and_worse(example):
    text, comparison = compared(example, **SHOWN, verdict="better")
    assert text == "better by 0.0120 bits per byte (95 % interval 0.0080 to 0.0160, 3 pairs)"
    assert headline(comparison) == "x is better than baseline."
    worse = {**SHOWN, "mean": 0.012, "low": 0.008, "high": 0.016}
    text, comparison = compared(example, **worse, verdict="worse")
    assert text == "worse by 0.0120 bits per byte (95 % interval 0.0080 to 0.0160, 3 pairs)"
    assert headline(comparison) == "x is worse than baseline."


def test_no_difference_shown(example):
    wide = {**SHOWN, "low": -0.03, "high": 0.006, "p_value": 0.1, "p_adjusted": 0.1, "detectable": 0.0195}
    text, comparison = compared(example, **wide, verdict="no difference shown")
    assert text == (
        "no difference shown (difference −0.012, 95 % interval −0.030 to 0.006, 3 pairs); "
        "a difference of 0.020 or more would have been"
    )
    assert headline(comparison) == "No difference from baseline is shown for x."


def test_no_difference_shown_after_correction(example):
    found = SHOWN | {"p_adjusted": 0.08, "detectable": 0.02, "verdict": "no difference shown"}
    text, _ = compared(example, names=("baseline", "x", "y", "z"), **found)
    size, rest = text.split(" on its own ")
    assert size.startswith("no difference shown: better by 0.012")
    assert rest.endswith(
        " 3 pairs), but not after correction for 3 arms (p = 0.080); a difference of 0.020 or more would have been"
    )


def test_differences_without_spread(example):
    constant = {"pairs": 3, "mean": -0.1}
    text, _ = compared(example, **constant, p_value=0.25, p_adjusted=0.25, verdict="no difference shown")
    assert text == (
        "no difference shown: better by 0.1000 in all 3 pairs, exactly, but they are too few to rule out chance"
    )
    text, _ = compared(example, pairs=3, mean=0, p_value=1, p_adjusted=1, verdict="no difference shown")
    assert text == "no difference shown: equal to baseline in all 3 pairs"
    text, _ = compared(example, 6, pairs=6, mean=-0.1, p_value=2**-5, p_adjusted=2**-5, verdict="better")
    assert text == "better by 0.1000 bits per byte in all 6 pairs, exactly: no spread, so no interval"


def test_one_seed(example):
    text, comparison = compared(example, 1, pairs=1, mean=0.01, verdict="one seed: no interval")
    assert text == ("worse by 0.0100 bits per byte in the only pair of runs; one seed has no interval, so no verdict")
    assert headline(comparison) == "one pair of runs is too few to judge x."


def test_divergence(example):
    text, comparison = compared(
        example,
        diverged={(1, 0), (1, 2)},
        pairs=1,
        mean=-0.01,
        divergence_p=0.5,
        divergence_p_adjusted=0.5,
        verdict="diverged more",
    )
    assert text == (
        "diverged in 2 of 3 seeds, baseline in 0 of 3 (adjusted p = 0.50: not significant); "
        "where both finished, difference −0.0100 (1 pair)"
    )
    assert headline(comparison) == "x diverged more often than baseline."
    text, comparison = compared(
        example,
        12,
        diverged={(0, seed) for seed in range(12)},
        pairs=0,
        divergence_p=2**-11,
        divergence_p_adjusted=2**-11,
        verdict="diverged less",
    )
    assert text == "diverged in 0 of 12 seeds, baseline in 12 of 12 (adjusted p < 0.001: more than chance)"
    assert headline(comparison) == "x diverged less often than baseline."


def test_differences_beside_equal_divergence_are_conditional(example):
    comparison = example(2, 4, diverged={(0, 1), (1, 1)})
    text = describe(comparison.arms[1], comparison)
    assert text.startswith("better by ")
    assert text.endswith(
        "3 pairs), over the seeds in which both finished: it diverged in 1 of 4 seeds, baseline in 1 of 4"
    )


def test_no_finite_pair(example):
    comparison = example(3, 2, diverged={(arm, seed) for arm in range(3) for seed in range(2)})
    assert describe(comparison.arms[1], comparison) == (
        "no pair of runs in which both finished; it diverged in 2 of 2 seeds, baseline in 2 of 2"
    )
    assert headline(comparison) == "seednorm and peri-ln cannot be judged, as no pair of runs finished."


def test_baseline_alone(example):
    comparison = example(1, 3)
    assert headline(comparison) == "Only baseline was run, so there is nothing to compare."
    assert describe(comparison.baseline, comparison) == "the baseline that the others are compared with"


@pytest.mark.parametrize("arms", [2, 5, 13])
def test_headline_accounts_for_every_arm(example, arms):
    comparison = example(arms, 4, diverged={(3, 0)})
    verdicts = [arm.compared.verdict for arm in comparison.arms[1:]]
    text = headline(comparison)
    for verdict in set(verdicts):
        names = [arm.name for arm in comparison.arms[1:] if arm.compared.verdict == verdict]
        if len(names) > 4:
            assert f"{len(names)} of {arms - 1} arms" in text
        else:
            assert all(name in text for name in names)


def test_direction_follows_the_metric(example):
    comparison = example(2, 4, noise=1e-4)
    higher = comparison.model_copy(update={"lower_is_better": False})
    assert re.match("better by", describe(comparison.arms[1], comparison))
    found = comparison.arms[1].compared.model_copy(update={"verdict": "worse"})
    arm = comparison.arms[1].model_copy(update={"compared": found})
    assert re.match("worse by", describe(arm, higher))
