"""A folder of data, with a catalog beside it."""

from pathlib import Path

import pytest

from finetune_assets import settings


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose catalog does not exist yet, and its folder of data, both empty."""
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(tmp_path / "catalog"))
    monkeypatch.setenv(settings.STORAGE_VARIABLE, str(tmp_path / "storage"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"
