"""Every data test has its own cache folder."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "nbllm-cache"
    monkeypatch.setenv("NBLLM_CACHE", str(folder))
    return folder
