"""What the scripts of this folder share: a file of an official repository, beside ours, and the figures of both.

A script takes the path of a clone as its argument. The file is read from the clone's current commit and run as it is;
nothing of it is kept here.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor

from assay.files import write_json


class Peer:
    """The module ``file`` of a clone of ``repository``, whose path is the script's argument.

    ``absent`` are packages that the file imports and that what is compared does not use. A path that is no such clone
    ends the script with one line.
    """

    def __init__(self, description: str | None, repository: str, file: str, *, absent: tuple[str, ...] = ()) -> None:
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("clone", type=Path, metavar="CLONE", help=f"a clone of {repository}")
        clone = parser.parse_args().clone
        self.repository, self.file = repository, file
        try:
            self.commit = git(clone, "rev-parse", "HEAD").strip()
            source = git(clone, "show", f"HEAD:{file}")
        except (OSError, subprocess.CalledProcessError):
            print(f"{str(clone)!r} is no clone of {repository}: it has no commit with {file}", file=sys.stderr)
            raise SystemExit(2) from None
        self.module = ModuleType(Path(file).stem)
        with patch.dict(sys.modules, {name: MagicMock() for name in absent}):
            exec(compile(source, file, "exec"), self.module.__dict__)


def git(clone: Path, *words: str) -> str:
    command = ["git", "-C", str(clone), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Differences:
    """The largest difference of each quantity, beside the largest value that the peer gives it."""

    def __init__(self) -> None:
        self.largest: dict[str, tuple[float, float]] = {}

    def add(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Raises ``ValueError`` for values that are not finite."""
        difference, size = self.largest.get(name, (0.0, 0.0))
        theirs = theirs.detach().view_as(ours)
        found = (ours.detach() - theirs).abs().max().item()
        if not math.isfinite(found):
            raise ValueError(f"{name} is not finite")
        self.largest[name] = (max(difference, found), max(size, theirs.abs().max().item()))

    def write(self, peer: Peer, script: str, **setting: object) -> None:
        """Print a table, and write the figures beside ``script``."""
        width = max(map(len, self.largest))
        print(f"{peer.repository} at {peer.commit}\n\n{'quantity':{width}}  largest difference  largest value")
        for name, (difference, size) in self.largest.items():
            print(f"{name:{width}}  {difference:18.2e}  {size:13.3g}")
        rows = {name: {"difference": one[0], "value": one[1]} for name, one in self.largest.items()}
        write_json(
            Path(script).with_suffix(".json"),
            {"repository": peer.repository, "commit": peer.commit, "file": peer.file, "torch": torch.__version__}
            | {"setting": setting, "largest": rows},
        )


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
