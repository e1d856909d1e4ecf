"""What is recorded of the machine is true of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys

import psutil
import pytest
import torch

from assay.training import environment


def test_hardware_is_this_machines_and_plain_data() -> None:
    found = environment.hardware()
    assert found["cores"] == os.cpu_count()
    assert found["memory"] == psutil.virtual_memory().total
    assert ("gpu" in found) == torch.cuda.is_available()
    assert found["processor"]
    assert json.loads(json.dumps(found)) == found


def test_versions_are_those_installed() -> None:
    found = environment.versions()
    assert found.pop("python") == ".".join(map(str, sys.version_info[:3]))
    assert found.keys() == {"assay", "torch", "accelerate", "numpy"}
    for package in ("accelerate", "numpy"):
        assert found[package] == importlib.metadata.version(package)
    assert found["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its allocator is asked")
class TestPeakMemory:
    def test_grows_with_what_is_allocated_and_stays(self) -> None:
        environment.reset_peak_memory()
        before = environment.peak_memory()
        size = 64 << 20
        block = torch.ones(size, dtype=torch.uint8)
        during = environment.peak_memory()
        assert block.sum() == size
        assert during >= before + 0.9 * size
        del block
        assert environment.peak_memory() >= during

    def test_resident_memory_is_below_it(self) -> None:
        resident = psutil.Process().memory_info().rss
        assert environment.peak_memory() >= 0.95 * resident

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system keeps the peak of the whole process")
    def test_starts_anew(self) -> None:
        block = torch.ones(128 << 20, dtype=torch.uint8)
        high = environment.peak_memory()
        del block
        environment.reset_peak_memory()
        assert environment.peak_memory() <= high - (100 << 20)

    def test_without_proc_the_system_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*arguments: object, **options: object) -> str:
            raise FileNotFoundError

        monkeypatch.setattr("pathlib.Path.read_text", missing)
        assert environment.peak_memory() >= 0.5 * psutil.Process().memory_info().rss
        assert environment._processor()
