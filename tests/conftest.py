from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("repo", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("repo")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
