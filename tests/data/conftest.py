import random

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

WORDS = ["the", "norm", "of", "a", "stream", "grows", "and", "forgets", "ünïcödé", "模型", "🙂", "x=1", "#", "\t", ""]


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """An empty user directory, so that each test starts without a cache."""
    folder = tmp_path_factory.mktemp("user") / "home"
    monkeypatch.setenv("ASSAY_HOME", str(folder))
    return folder


@pytest.fixture
def notes(tmp_path):
    """A folder of 60 made-up documents, about 40 kB, with characters of one to four bytes."""
    folder = tmp_path / "notes"
    folder.mkdir()
    choose = random.Random(0)
    for number in range(60):
        lines = (" ".join(choose.choices(WORDS, k=12)) for _ in range(choose.randrange(5, 15)))
        (folder / f"{number:02}.txt").write_bytes("\n".join(lines).encode())
    return folder


@pytest.fixture
def settled(monkeypatch):
    """Lets the memo of content hashes trust files that were written a moment ago."""
    monkeypatch.setattr("assay.data.split.SETTLED_NS", -(10**18))
