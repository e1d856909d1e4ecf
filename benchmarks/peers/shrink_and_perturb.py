"""Shrink and perturb beside its authors' function: python benchmarks/peers/shrink_and_perturb.py CLONE

CLONE is a clone of github.com/JordanAsh/warm_start. Its script trains on being read, so its perceptron and its
function alone are taken from it. Both draw the fresh network from one seed, and mix it with the same old one.
"""

from __future__ import annotations

import ast
import subprocess
from unittest.mock import patch

import torch
from clones import Differences, Peer
from torch import nn

from assay.training.start.shrink_and_perturb import shrink_and_perturb

CASES = {"lambda 0.4, gamma 0.1": (0.4, 0.1), "warm start": (1.0, 0.0), "fresh start": (0.0, 1.0)}
TAKEN = ("mlp", "shrink_perturb")


def main() -> None:
    found = Differences()
    with patch.object(subprocess, "run", only_the_functions):
        peer = Peer(__doc__, "github.com/JordanAsh/warm_start", "run.py")
    torch.manual_seed(0)
    old = peer.module.mlp()
    for name, (shrink, perturb) in CASES.items():
        torch.manual_seed(1)
        with patch.object(nn.Module, "cuda", lambda module: module):
            theirs = peer.module.shrink_perturb(old, shrink, perturb)
        torch.manual_seed(1)
        ours = peer.module.mlp()
        shrink_and_perturb(old, ours, shrink=shrink, perturb=perturb)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            found.add(name, one.detach(), other.detach())
    found.write(peer, __file__, network="mlp", dtype="float32")


_run = subprocess.run


def only_the_functions(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """What git says, and of a file the definitions in ``TAKEN`` as they stand there."""
    said: subprocess.CompletedProcess[str] = _run(command, **options)  # type: ignore[call-overload]
    if "show" in command:
        imports = "import torch.nn as nn\nimport torch.nn.functional as F\nfrom copy import deepcopy\n"
        imports += "from types import SimpleNamespace\nargs, num_classes = SimpleNamespace(model='mlp'), 10\n\n"
        parts = [part for part in ast.parse(said.stdout).body if getattr(part, "name", None) in TAKEN]
        said.stdout = imports + "\n\n".join(ast.unparse(part) for part in parts)
    return said


if __name__ == "__main__":
    main()
