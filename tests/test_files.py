"""Files are whole or absent."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import AssayError
from assay.files import disk_errors, write_json, write_text

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(value=values)
def test_json_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert json.loads(path.read_bytes().decode("utf-8")) == value
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


def test_text_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_text(path, "a long first text")
    write_text(path, "ü 模")
    assert path.read_bytes() == "ü 模".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [math.nan, math.inf, object()])
def test_what_is_no_json_leaves_the_old_file(tmp_path: Path, value: object) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"value": value})
    assert json.loads(path.read_text()) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "text"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("assay.files.os.fsync", full)
    with pytest.raises(AssayError, match=r"no space left to write .*text.*; free some") as caught:
        write_text(path, "new")
    assert caught.value.exit_status == 1
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_stop_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    write_text(path, "old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("assay.files.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_line_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "x.json", tmp_path / "file" / "x.json"):
        with pytest.raises(AssayError, match="cannot write") as caught:
            write_json(path, {})
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_directory_in_the_way_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(AssayError, match="cannot write"):
        write_text(path, "text")
    assert path.is_dir()
    assert list(tmp_path.iterdir()) == [path]


def test_only_errors_of_the_system_are_translated(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match=r"cannot write .*: strange"), disk_errors(tmp_path):
        raise OSError("strange")
    with pytest.raises(KeyError), disk_errors(tmp_path):
        raise KeyError("other")
