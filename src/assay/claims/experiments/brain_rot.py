"""A small model goes on with scraps in place of passages: what that does to it, dose by dose.

A model is trained on Python's library, goes on with the manual's text, and then with passages of it alone. The text
of the second stage is cut into passages of more than 100 words and signs, or into single lines of fewer than 30,
which stand for junk: the paper's rule of lengths, without popularity. All doses have equally many tokens and steps.

Xing, Hong, Wang, Chen, Zhang, Grama, Tu, Wang, 2025, arXiv:2510.13928.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from assay.analysis.brain_rot import Post, count_tokens, kind, mixture
from assay.claims import domains
from assay.claims.experiments import experiments

DOSES = (0, 20, 50, 80, 100)


@experiments.register("brain-rot")
def brain_rot(
    seed: int,
    *,
    first_tokens: int = 100_000,
    tokens: int = 50_000,
    tuned_tokens: int = 15_000,
    depth: int = 2,
    hidden_size: int = 64,
    sequence_length: int = 128,
    batch_size: int = 8,
    eval_bytes: int = 16384,
) -> dict[str, float]:
    """Bits per byte of held-out manual after a dose of D % junk: ``long.D`` of passages, ``short.D`` of single lines.

    ``context.D``, short minus long, is what a passage's context is worth to the model. ``tuned.D`` is that of
    passages after the last stage. ``slope`` and ``tuned.slope`` are the least-squares slopes of long and tuned over
    the dose, in bits per byte from 0 to 100 %.
    """
    random = np.random.default_rng(seed)
    chapters = domains.manual()
    blocks = [block for chapter in chapters for block in passages(chapter)]
    blocks = [blocks[place] for place in random.permutation(len(blocks))]
    held_out, training = blocks[: len(blocks) // 3], blocks[len(blocks) // 3 :]
    posts = [Post(text, count_tokens(text)) for text in training[::2]]
    posts += [Post(line, count_tokens(line)) for text in training[1::2] for line in text.splitlines() if line.strip()]
    table: dict[str, Any] = {
        "model": {"depth": depth, "hidden_size": hidden_size, "num_heads": 2},
        "data": {"sequence_length": sequence_length, "batch_size": batch_size, "validation": 0.3},
        "training": {"evaluations": 1, "compile": False},
        "schedule": {"name": "cosine", "warmup": 0.1},
        "seed": seed,
    }
    table["data"]["eval_bytes"] = eval_bytes
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long = domains.write_documents(folder / "long.jsonl", held_out)
        lines = [line for text in held_out for line in text.splitlines() if line.strip()]
        short = domains.write_documents(folder / "short.jsonl", lines)

        def run(out: str, corpus: str, budget: int, start: str = "") -> dict[str, float]:
            table["data"]["corpus"] = domains.mixture({corpus: 1, long: 0, short: 0})
            values: dict[str, Any] = {"training.tokens": budget}
            if start:
                values |= {"start.run": str(folder / start), "start.optimizer": False, "start.data": False}
            return domains.final_domains(folder / out, table, values)

        run("first", "python-stdlib", first_tokens)
        clean = [post.text for post in posts if kind(post) == "control"]
        passage_corpus = domains.write_documents(folder / "clean.jsonl", clean)
        for dose in DOSES:
            mixed = mixture(posts, ratio=dose / 100, tokens=tokens // 3, seed=seed)
            corpus = domains.write_documents(folder / f"dose-{dose}.jsonl", [post.text for post in mixed])
            after = run(f"dose-{dose}", corpus, tokens, start="first")
            found |= {f"long.{dose}": after[long], f"short.{dose}": after[short]}
            found[f"context.{dose}"] = after[short] - after[long]
            found[f"tuned.{dose}"] = run(f"tuned-{dose}", passage_corpus, tuned_tokens, start=f"dose-{dose}")[long]
    shares = np.array(DOSES) / 100
    for prefix, values in (("", "long"), ("tuned.", "tuned")):
        found[f"{prefix}slope"] = float(np.polyfit(shares, [found[f"{values}.{dose}"] for dose in DOSES], 1)[0])
    return found


def passages(text: str, size: int = 900) -> list[str]:
    """``text`` in pieces of about ``size`` characters that end where a line does."""
    pieces: list[str] = []
    current = ""
    for line in text.splitlines(keepends=True):
        current += line
        if len(current) >= size:
            pieces.append(current)
            current = ""
    return [*pieces, current] if current.strip() else pieces
