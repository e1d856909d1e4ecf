"""One run at a constant rate, and from its end a short decay for each kind of data.

The trunk reads the sources of Python's library, and 5 % of arithmetic questions, as in the paper. Two branches decay
on three tenths of questions and seven of sources: one with the bare answers (``direct``), the other with their steps
(``steps``). A third decays on the union of both, 0.15 each. What a branch is worth shows beside the same data at the
trunk's constant rate, and beside a whole run that reads the branch's mixture from the beginning, for as many tokens
as trunk and branch together.

Wang, Zhou, Li, Liu, 2025, arXiv:2506.20512, whose branches decay by a cosine to a tenth.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from assay.claims.domains import final_domains, mixture, write_documents
from assay.claims.experiments import experiments

BASE = "python-stdlib"
EARLY, QUESTIONS = 0.05, 0.3
FLOOR = 0.1


@experiments.register("stable-then-decay")
def stable_then_decay(
    seed: int,
    *,
    stable_tokens: int = 90_000,
    decay_tokens: int = 18_000,
    depth: int = 2,
    hidden_size: int = 64,
    sequence_length: int = 128,
    batch_size: int = 2,
    questions: int = 3000,
    eval_bytes: int = 32768,
) -> dict[str, float]:
    """Bits per byte of held-out questions, as the mean over both kinds, each by the run that is for it.

    ``stable`` is the trunk's end; from there on go ``branch``, ``constant`` and ``union``; ``whole`` is from scratch.
    ``kept`` is the share of the gain of ``whole`` over ``stable`` that the branches have. ``ARM.sources`` are the
    bits per byte of held-out sources.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = arithmetic(questions, seed)
        written = {kind: write_documents(folder / f"{kind}.jsonl", texts[kind]) for kind in texts}
        table: dict[str, Any] = {
            "model": {"depth": depth, "hidden_size": hidden_size},
            "data": {
                "sequence_length": sequence_length,
                "batch_size": batch_size,
                "validation": 0.1,
                "eval_bytes": eval_bytes,
            },
            "training": {"evaluations": 1, "compile": False},
            "seed": seed,
        }

        def run(arm: str, tokens: int, shares: dict[str, float], schedule: dict[str, Any], **start: Any) -> Bits:
            kinds = {BASE: 1 - sum(shares.values()), **{written[kind]: shares.get(kind, 0.0) for kind in written}}
            table["data"]["corpus"] = mixture(kinds)
            table["schedule"] = schedule
            bits = final_domains(folder / arm, table, {"training.tokens": tokens, **start})
            return {BASE: bits[BASE], **{kind: bits[corpus] for kind, corpus in written.items()}}

        warmup = 0.05 * stable_tokens
        total = stable_tokens + decay_tokens
        constant: dict[str, Any] = {"name": "constant", "warmup": 0.0}
        cosine: dict[str, Any] = {"name": "cosine", "warmup": 0.0, "final": FLOOR}
        whole = {"name": "warmup-stable-decay", "warmup": warmup / total, "final": FLOOR, "shape": "cosine"}
        whole |= {"decay": decay_tokens / total}
        on = {"start.run": str(folder / "stable"), "start.data": False}
        own = {kind: {kind: QUESTIONS} for kind in written}
        early = dict.fromkeys(written, EARLY / len(written))
        stable = run("stable", stable_tokens, early, {**constant, "warmup": 0.05})
        union = run("union", decay_tokens, dict.fromkeys(written, QUESTIONS / len(written)), cosine, **on)
        runs = {
            "stable": dict.fromkeys(written, stable),
            "branch": {kind: run(f"branch-{kind}", decay_tokens, own[kind], cosine, **on) for kind in written},
            "constant": {kind: run(f"constant-{kind}", decay_tokens, own[kind], constant, **on) for kind in written},
            "union": dict.fromkeys(written, union),
            "whole": {kind: run(f"whole-{kind}", total, own[kind], whole) for kind in written},
        }
    found = {arm: sum(bits[kind] for kind, bits in by_kind.items()) / len(written) for arm, by_kind in runs.items()}
    sources = {
        f"{arm}.sources": sum(bits[BASE] for bits in by_kind.values()) / len(written) for arm, by_kind in runs.items()
    }
    kept = (found["stable"] - found["branch"]) / (found["stable"] - found["whole"])
    return {**found, **sources, "kept": kept}


Bits = dict[str, float]
"""Bits per byte by kind of text."""


def arithmetic(count: int, seed: int) -> dict[str, list[str]]:
    """``count`` questions in two steps, with the answer alone and with the steps."""
    drawn = random.Random(seed)
    found: dict[str, list[str]] = {"direct": [], "steps": []}
    for _ in range(count):
        name, thing = drawn.choice(("Ann", "Ben", "Eva", "Tom")), drawn.choice(("pens", "nuts", "coins", "cards"))
        first, more = drawn.randint(10, 99), drawn.randint(10, 99)
        given = drawn.randint(1, first + more - 1)
        question = f"Q: {name} has {first} {thing}, gets {more} and gives {given} away. How many are left?\nA:"
        total, left = first + more, first + more - given
        found["direct"].append(f"{question} {left}\n")
        found["steps"].append(f"{question} {first} + {more} = {total}. {total} - {given} = {left}. {left}\n")
    return found
