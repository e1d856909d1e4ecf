"""Where assay keeps what belongs to the user; the environment variable ``ASSAY_HOME`` moves all of it."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The directory of the user's data: ``ASSAY_HOME``, else the platform's user data directory."""
    chosen = os.environ.get("ASSAY_HOME")
    return Path(chosen).expanduser() if chosen else platformdirs.user_data_path("assay")


def cache() -> Path:
    """The directory of what can be made again: ``ASSAY_HOME/cache``, else the platform's user cache."""
    return home() / "cache" if os.environ.get("ASSAY_HOME") else platformdirs.user_cache_path("assay")
