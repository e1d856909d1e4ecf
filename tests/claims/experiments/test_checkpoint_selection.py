"""Pairs of the library are what they say, and the experiment's choice agrees with its scores."""

from __future__ import annotations

import math

from assay.claims.experiments.checkpoint_selection import _functions, documented, retrieving_checkpoints

SOURCE = '''
def area(width, height):
    """Return the area of a rectangle.

    More of it.
    """
    return width * height

def bare(x):
    return x

def short(x):
    """Too short."""
    return x
'''


def test_a_function_is_paired_with_the_first_line_of_its_docstring() -> None:
    assert list(_functions(SOURCE)) == [
        ("Return the area of a rectangle.", "def area(width, height):\n    return width * height")
    ]
    assert list(_functions("def broken(:")) == []


def test_pairs_are_drawn_by_the_seed() -> None:
    one, again, other = documented(8, 40, 0), documented(8, 40, 0), documented(8, 40, 1)
    assert [[text.tolist() for text in pair] for pair in one] == [[text.tolist() for text in pair] for pair in again]
    assert [pair[0].tolist() for pair in one] != [pair[0].tolist() for pair in other]
    assert max(len(text) for pair in one for text in pair) <= 40
    assert all(bytes(passage.tolist()).startswith(b"def ") for _, passage in one)


def test_the_quantities_agree() -> None:
    run = {"model.depth": 1, "model.hidden_size": 16, "model.num_heads": 1, "data.eval_bytes": 2048}
    found = retrieving_checkpoints(0, tokens=512 * 6, keep=(0.5, 1.0), steps=2, length=24, functions=64, run=run)
    assert math.isnan(found["correlation"])
    assert found["lead"] in (0.0, 0.5)
    assert found["regret"] in (0.0, found["first"] - found["last"])
    assert 0 < found["last"] <= 1
