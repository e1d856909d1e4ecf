"""Every test has a home of its own, so that none reads or writes what belongs to the user."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the whole session, where what is cached is worth keeping."""
    return tmp_path_factory.mktemp("assay_home")


@pytest.fixture(autouse=True)
def _own_home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_HOME", str(shared_home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small documents with learnable structure: 40 files of counted lines."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        lines = [f"line {i} of file {number}: {'abcdefghij'[i % 10] * (i % 7 + 1)}" for i in range(60)]
        (folder / f"{number:02}.txt").write_text("\n".join(lines))
    return folder
