"""Where rows of queries, functions and the hub wait to be read as files."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_assets import settings


@contextmanager
def spool_folder() -> Iterator[Path]:
    """A folder for rows of sources that are no files; what killed runs left is removed."""
    parent = settings.local_state_folder() / "spool"
    for left in parent.glob("*") if parent.exists() else ():
        if not Path(f"/proc/{left.name}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / str(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
