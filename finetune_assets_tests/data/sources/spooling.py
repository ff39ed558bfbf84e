"""Spooling one source, and the error that it ends with."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.spool import spool
from finetune_assets.errors import UserError

WHERE = "/catalog/tiny.yaml: sources[0]"


def spooled(target: Path, folder: Path | None = None, **settings: Any) -> list[dict[str, Any]]:
    """The rows of the file that a source was spooled to."""
    spool(Source.model_validate(settings), target, WHERE, folder)
    return [json.loads(line) for line in target.read_bytes().splitlines()]


def failure(folder: Path | None = None, **settings: Any) -> UserError:
    """The error that spooling ends with; nothing may be left behind."""
    target, path = Path(folder or ".") / "never.jsonl", list(sys.path)
    with pytest.raises(UserError) as caught:
        spool(Source.model_validate(settings), target, WHERE, folder)
    assert sys.path == path
    assert caught.value.where.startswith(WHERE)
    assert not list(target.parent.glob("never*"))
    return caught.value
