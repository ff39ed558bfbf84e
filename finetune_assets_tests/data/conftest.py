"""Spooling into a temporary folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from finetune_assets_tests.data.sources.spooling import spooled


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Spool a source, its folder and its settings given, and read the file back."""
    return partial(spooled, tmp_path / "spooled.jsonl")
