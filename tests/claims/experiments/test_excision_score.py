from __future__ import annotations

import ast
import colorsys
import math
import random

import pytest

from assay.claims.experiments import experiments
from assay.claims.experiments.excision_score import FUNCTIONS, bleu, mutated, renamed, sari, sites, works


def test_sari_and_bleu_of_copies_and_by_hand() -> None:
    original, reference = list("abcde"), list("abxde")
    assert sari(original, reference, reference) == 1
    assert bleu(reference, reference) == pytest.approx(1)
    assert sari(original, reference, original) < 0.5
    assert bleu(list("ab"), list("ab")[:1]) == pytest.approx(math.exp(-1))
    # a of the two original words is kept rightly, b wrongly; longer n-grams: none but ("a", "b"), wrongly kept
    first = (2 * 0.5 * 1 / 1.5) + 1 + 0
    second = 0 + 1 + 0
    rest = 1 + 1 + 1
    assert sari(["a", "b"], ["a", "c"], ["a", "b"]) == pytest.approx((first + second + 2 * rest) / 12)


def test_bleu_by_hand() -> None:
    """3 of 4 tokens, 1 of 3 pairs (2 of 4 with one added), no triple of 2 (1 of 3), no quadruple of 1 (1 of 2)."""
    assert bleu(list("abcd"), list("abxd")) == pytest.approx((3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25)


def test_defects_and_names() -> None:
    tree = ast.parse("def f(a):\n    b = a + 1\n    return b < 2")
    assert sites(tree) == 4
    changed = {ast.unparse(mutated(tree, {site: kind})) for site in range(4) for kind in range(2)}
    assert len(changed) == 8
    assert "def f(a):\n    b = a - 1\n    return b < 2" in changed
    assert ast.unparse(renamed(tree, random.Random(0))) == "def f(a):\n    result = a + 1\n    return result < 2"


def test_functions_work_as_they_are_and_fail_with_a_defect() -> None:
    import inspect
    import textwrap

    for function, make in FUNCTIONS:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        assert works(function, tree, make(random.Random(0)))
    wrong = ast.parse("def rgb_to_yiq(r, g, b):\n    return (r, g, b)")
    assert not works(colorsys.rgb_to_yiq, wrong, [(0.1, 0.2, 0.3)])


def test_scores_of_repairs() -> None:
    found = experiments.build("repair-measures", {"repairs": 12}, seed=0)
    assert found["es.shift"] == 0
    assert found["es"] == found["es.context"]
    assert 0 < found["passed"] < 1
