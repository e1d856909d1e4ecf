"""Excision Score, SARI and BLEU of attempted repairs, beside whether the repaired function works."""

from __future__ import annotations

import ast
import colorsys
import copy
import inspect
import math
import random
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from assay.analysis.excision_score import excision_score, tokens_of
from assay.claims.experiments import experiments

Calls = list[tuple[Any, ...]]


def _colours(generator: random.Random) -> Calls:
    return [tuple(generator.random() for _ in range(3)) for _ in range(20)]


def _samples(generator: random.Random) -> Calls:
    return [([generator.randrange(9) for _ in range(size)],) for size in range(1, 13)]


FUNCTIONS: tuple[tuple[Any, Callable[[random.Random], Calls]], ...] = (
    *((getattr(colorsys, name), _colours) for name in ("rgb_to_yiq", "yiq_to_rgb", "rgb_to_hls", "hls_to_rgb")),
    *((getattr(colorsys, name), _colours) for name in ("rgb_to_hsv", "hsv_to_rgb")),
    *((getattr(statistics, name), _samples) for name in ("median", "median_low", "median_high", "median_grouped")),
)
"""Functions of the standard library that are written in Python and end for any change below, and what to call them
with."""

_OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add, ast.Mult),
    ast.Mult: (ast.Add, ast.Div),
    ast.Div: (ast.Mult, ast.Sub),
    ast.Eq: (ast.NotEq, ast.Lt),
    ast.Lt: (ast.GtE, ast.Gt),
    ast.LtE: (ast.Gt, ast.Lt),
    ast.Gt: (ast.LtE, ast.Lt),
}


@experiments.register("repair-measures")
def repair_measures(seed: int, *, repairs: int = 150) -> dict[str, float]:
    """Pearson's correlation of ``es``, ``sari``, ``bleu`` with passing tests, alone and below ``.context``.

    Each document is a function with two defects, its reference the function without them, and a prediction removes
    each with a chance of ½, replaces it by another of ¼, adds one elsewhere of ¼, and renames a variable of ¼. The
    context is the text of a module in front of all three. ``es.shift`` is the most that the context moved a score.
    """
    generator = random.Random(seed)
    context = Path(inspect.getfile(textwrap)).read_text(encoding="utf-8")
    scores: dict[str, list[float]] = {}
    passed: list[float] = []
    while len(passed) < repairs:
        function, make = generator.choice(FUNCTIONS)
        calls = make(generator)
        correct = _without_docstring(ast.parse(textwrap.dedent(inspect.getsource(function))))
        defects = generator.sample(range(sites(correct)), 2)
        given = {site: generator.randrange(2) for site in defects}
        original = mutated(correct, given)
        if works(function, original, calls):
            continue
        attempt = {
            site: kind if fate >= 0.75 else 1 - kind
            for (site, kind), fate in ((item, generator.random()) for item in given.items())
            if fate >= 0.5
        }
        if generator.random() < 0.25:
            attempt[generator.randrange(sites(correct))] = generator.randrange(2)
        predicted = mutated(correct, attempt)
        if generator.random() < 0.25:
            predicted = renamed(predicted, generator)
        passed.append(float(works(function, predicted, calls)))
        documents = [ast.unparse(tree) for tree in (original, correct, predicted)]
        for ending, before in (("", ""), (".context", context)):
            texts = [before + document for document in documents]
            tokens = [tokens_of(text) for text in texts]
            for name, value in (
                ("es", excision_score(texts[0], texts[1], texts[2]).score),
                ("sari", sari(*tokens)),
                ("bleu", bleu(tokens[1], tokens[2])),
            ):
                scores.setdefault(name + ending, []).append(value)
    found = {name: statistics.correlation(values, passed) for name, values in scores.items()}
    shifts = (abs(a - b) for a, b in zip(scores["es"], scores["es.context"], strict=True))
    return found | {"es.shift": max(shifts), "passed": statistics.mean(passed)}


def works(function: Any, tree: ast.Module, calls: Calls) -> bool:
    """Whether the function in ``tree`` gives what ``function`` does for all ``calls``."""
    names = dict(vars(inspect.getmodule(function)))
    exec(compile(tree, "<repair>", "exec"), names)
    try:
        return all(names[function.__name__](*call) == function(*call) for call in calls)
    except (ArithmeticError, IndexError, TypeError, ValueError, NameError, statistics.StatisticsError):
        return False


def mutated(tree: ast.Module, kinds: dict[int, int]) -> ast.Module:
    """``tree`` with another operator or number at those of its ``sites``, of two kinds each."""
    tree = copy.deepcopy(tree)
    found = _sites(tree)
    for site, kind in kinds.items():
        node = found[site]
        if hasattr(node, "value"):
            node.value += (1, -1)[kind]
        elif hasattr(node, "ops"):
            node.ops[0] = _OPERATORS[type(node.ops[0])][kind]()
        else:
            node.op = _OPERATORS[type(node.op)][kind]()
    return ast.fix_missing_locations(tree)


def sites(tree: ast.Module) -> int:
    """How many operators and numbers ``mutated`` can change."""
    return len(_sites(tree))


def _sites(tree: ast.Module) -> list[Any]:
    def changeable(node: ast.AST) -> bool:
        if isinstance(node, ast.Constant):
            return isinstance(node.value, int | float) and not isinstance(node.value, bool)
        if isinstance(node, ast.Compare):
            return type(node.ops[0]) in _OPERATORS
        return isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS

    return [node for node in ast.walk(tree) if changeable(node)]


def renamed(tree: ast.Module, generator: random.Random) -> ast.Module:
    """``tree`` with one of the names that it assigns replaced by a new one."""
    tree = copy.deepcopy(tree)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = sorted({node.id for node in names if isinstance(node.ctx, ast.Store)})
    if assigned:
        old = generator.choice(assigned)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == old:
                node.id = "result"
            elif isinstance(node, ast.arg) and node.arg == old:
                node.arg = "result"
    return tree


def _without_docstring(tree: ast.Module) -> ast.Module:
    body = tree.body[0].body  # type: ignore[attr-defined]
    if isinstance(body[0], ast.Expr):
        body.pop(0)
    return tree


def sari(original: Sequence[str], reference: Sequence[str], predicted: Sequence[str]) -> float:
    """Of n-grams up to 4: mean F1 of those kept and added, and precision of those deleted (Xu et al., 2016)."""
    total = 0.0
    for n in range(1, 5):
        o, a, b = (_ngrams(tokens, n) for tokens in (original, reference, predicted))
        kept, keep = o & b, o & a
        good = kept & a
        total += _f1(_mean(good[gram] / kept[gram] for gram in kept), _mean(good[gram] / keep[gram] for gram in keep))
        deleted = o - b
        right = deleted - a
        total += _mean(right[gram] / deleted[gram] for gram in deleted)
        added, missing = b.keys() - o.keys(), a.keys() - o.keys()
        total += _f1(_mean(float(gram in a) for gram in added), _mean(float(gram in b) for gram in missing))
    return total / 12


def bleu(reference: Sequence[str], predicted: Sequence[str]) -> float:
    """Of n-grams up to 4, with one added to each count above single tokens (Lin and Och, 2004)."""
    if not predicted:
        return 0.0
    logs = 0.0
    for n in range(1, 5):
        a, b = _ngrams(reference, n), _ngrams(predicted, n)
        extra = int(n > 1)
        right = (a & b).total() + extra
        if not right:
            return 0.0
        logs += math.log(right / (b.total() + extra)) / 4
    return math.exp(logs + min(0.0, 1 - len(reference) / len(predicted)))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
