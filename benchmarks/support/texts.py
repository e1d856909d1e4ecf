"""A made-up text to train on, the same everywhere."""

from __future__ import annotations

import random
from pathlib import Path


def write_texts(folder: Path, *, documents: int, words: int, seed: int = 0) -> Path:
    """Documents of sentences over 200 made-up words, each of which prefers a few successors."""
    choose = random.Random(seed)
    letters = "etaoinshrdlu"
    vocabulary = ["".join(choose.choices(letters, k=choose.randrange(2, 8))) for _ in range(200)]
    successors = [choose.sample(range(200), k=6) for _ in vocabulary]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        at = choose.randrange(200)
        text = []
        for _ in range(words):
            text.append(vocabulary[at] + ("." if choose.random() < 0.1 else ""))
            at = choose.choice(successors[at]) if choose.random() < 0.9 else choose.randrange(200)
        (folder / f"{number:04}.txt").write_text(" ".join(text), encoding="utf-8")
    return folder
