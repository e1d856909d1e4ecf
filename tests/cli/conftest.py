from __future__ import annotations

import sys

import pytest

from assay.cli import main


@pytest.fixture
def assay(monkeypatch, capsys, tmp_path):
    """Run the command in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return left.value.code or 0, written.out, written.err

    return run
