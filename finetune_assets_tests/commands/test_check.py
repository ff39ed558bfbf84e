"""What `finetune check` shows of rows."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from finetune_assets import settings
from finetune_assets.catalog.load import load
from finetune_assets.commands.check import show

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


def test_a_row_that_will_be_cut_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(RECIPES))
    entry = load("tool_calling")
    entry.config.training.max_length = 64
    entry.config.training.long_rows = "truncate"
    out = io.StringIO()
    show(entry, 1, Console(file=out, width=200))
    assert "tokens, of 64 at most: `long_rows: truncate`" in out.getvalue()
