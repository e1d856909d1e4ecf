"""The stopping rule on the table of spreads that the authors' repository ships.

    git clone https://github.com/PaperUnderReviewDeepLearning/Optimization
    python benchmarks/peers/cnn_stop_learning.py Optimization/CSV_Data/MeanData/data.csv

The table has the rounded mean spreads of 4 layers in every epoch of one training that their script ended by its rule,
so that the rule must fire in its last row and not before.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from assay.analysis.cnn_stop_learning import stop_epoch


def main() -> None:
    with open(sys.argv[1], newline="") as file:
        rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    found = {"epochs": len(rows), "layers": len(rows[0])} | {
        f"stop with {epochs} equal rows": stop_epoch(rows, epochs=epochs) for epochs in (2, 5)
    }
    text = json.dumps(found, indent=1)
    print(text)
    Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
