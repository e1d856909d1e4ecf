"""Hedges' g beside statsmodels': python benchmarks/peers/brain_rot.py

Run by hand where statsmodels is installed: ``pip install statsmodels``. The figures go to ``brain_rot.json`` beside
this file.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
from statsmodels.stats.meta_analysis import effectsize_smd

from assay.analysis.brain_rot import hedges_g
from assay.files import write_json

PAIRS = 200


def main() -> None:
    random = np.random.default_rng(0)
    ours, theirs = [], []
    for _ in range(PAIRS):
        junk, control = (
            random.normal(random.normal(), random.uniform(0.1, 3), random.integers(2, 12)) for _ in range(2)
        )
        ours.append(hedges_g(junk, control))
        moments = [(arm.mean(), arm.std(ddof=1), len(arm)) for arm in (junk, control)]
        theirs.append(float(effectsize_smd(*moments[0], *moments[1])[0]))
    difference = np.abs(np.subtract(ours, theirs))
    found = {
        "statsmodels": version("statsmodels"),
        "pairs": PAIRS,
        "largest": {"difference": float(difference.max()), "value": float(np.abs(theirs).max())},
        "example": {"assay": ours[0], "statsmodels": theirs[0]},
    }
    write_json(Path(__file__).with_suffix(".json"), found)


if __name__ == "__main__":
    main()
