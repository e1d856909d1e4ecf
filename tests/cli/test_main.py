"""The command as a whole: what it loads, what it says, how it leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from assay.errors import AssayError, Interrupted, UserError


def assay(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assay", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("statement", ["import assay", "import assay.cli; import assay.cli.train, assay.cli.compare"])
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    heavy = [
        "torch",
        "transformers",
        "scipy",
        "plotly",
        "datasets",
        "ray",
        "accelerate",
        "tokenizers",
        "numpy",
        "jinja2",
    ]
    probe = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_are_there_and_documented() -> None:
    import assay as package

    for name in package.__all__:
        value = getattr(package, name)
        assert name == "__version__" or value.__doc__, name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'compar'"):
        package.compar  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--nope"], "No such option: --nope"),
        (["train", "--set", "model.depth"], "FIELD=VALUE"),
        (["train", "--set", "model.norm=seednrm"], "unknown norm 'seednrm'; nearest: seednorm"),
        (["train", "--set", "model.nrm=x"], "unknown field 'model.nrm'; nearest: norm"),
        (["train", "--set", "model.num_heads=7"], "num_heads=7 does not divide hidden_size=256; 8 does"),
        (["train", "--set", "training.tokens=-1"], "greater than 0"),
        (["train", "--set", "training.tokens=1k", "--set", "training.flops=1"], "a run has one budget"),
        (["train", "--set", "training.tokens=5"], "does not pay for one step"),
        (["train", "--set", "data.corpus=text:/no/such/file"], "/no/such/file"),
        (["train", "/no/such.toml"], "cannot read configuration '/no/such.toml'"),
        (["compare"], "no arms to compare"),
        (["compare", "--arms", "baseline,seednrm"], "unknown technique 'seednrm'; nearest: seednorm"),
        (["compare", "--arms", "baseline,"], "empty part"),
        (["compare", "--arms", "baseline,peri-ln+mix-ln"], "both set 'model.placement'"),
        (["compare", "--arms", "baseline", "--seeds", "0"], "at least one seed"),
        (["compare", "--arms", "baseline", "--tokens", "-5"], "greater than 0"),
        (["compare", "--arms", "baseline", "--tokens", "lots"], "'lots' is not a number"),
        (["compare", "--arms", "baseline", "--tokens", "100k", "--flops", "1e9"], "a run has one budget"),
        (["compare", "--arms", "baseline", "--tune", "lr"], "FIELD=VALUE,VALUE"),
        (["compare", "--arms", "baseline", "--runner", "slurm"], "unknown runner 'slurm'"),
        (["report", "/no/such"], "/no/such"),
        (["export", "/no/such", "--out", "x"], "/no/such"),
        (["techniques", "show", "seednrm"], "nearest: seednorm"),
        (["papers", "show", "seednrm"], "nearest: seednorm"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments: Sequence[str], message: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if arguments[0] in ("train", "compare") and len(arguments) > 1 else []
    result = assay(*arguments, *out)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (UserError("wrong"), 2, "error: wrong"),
        (AssayError("failed"), 1, "error: failed"),
        (Interrupted("stopped"), 130, "error: stopped"),
        (KeyboardInterrupt(), 130, "stopped"),
        (RuntimeError("one\ntwo"), 1, "error: RuntimeError: one two (--debug shows the traceback)"),
    ],
)
def test_every_error_has_its_status(
    error: BaseException, status: int, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from assay import cli
    from assay.cli import analyse, apply, claims, compare, diagnose, papers, techniques, train  # noqa: F401

    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["assay"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == status
    assert capsys.readouterr().err.strip() == shown


def test_debug_shows_the_traceback() -> None:
    result = assay("techniques", "show", "nope", "--debug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    assert "UserError" in result.stderr


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m assay papers list | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert "error" not in result.stderr
