"""``assay analyse negative-aware-norm``: are unknown inputs told from known ones by the size of their features?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.cli.analyse import analyse_app
from assay.cli.options import Json
from assay.cli.printing import print_json, print_table, print_text

Known = Annotated[
    Path,
    typer.Argument(
        metavar="KNOWN",
        help="Features of inputs like those of the training: .npy, .csv or .safetensors, a row for each input. "
        "They are what the network's last linear map reads.",
    ),
]
Unknown = Annotated[Path, typer.Argument(metavar="UNKNOWN", help="Features of other inputs, from the same network.")]


@analyse_app.command("negative-aware-norm")
def negative_aware_norm(inside: Known, outside: Unknown, as_json: Json = False) -> None:
    """Score inputs by the mean size of their active features, and tell unknown ones by it."""
    from dataclasses import asdict

    from assay.analysis.negative_aware_norm import negative_aware_norms, read_features

    found = negative_aware_norms(read_features(inside), read_features(outside))
    if as_json:
        print_json(asdict(found))
        return
    named = {"mean of active units": found.nan, "L1 norm": found.l1, "1 / active units": found.sparsity}
    print_table(
        ["score", "AUROC", "FPR95", "threshold"],
        [[name, f"{one.auroc:.3f}", f"{one.fpr95:.3f}", f"{one.threshold:.4g}"] for name, one in named.items()],
    )
    print_text(f"\nactive units: {found.inside_active:.1%} known, {found.outside_active:.1%} unknown")
