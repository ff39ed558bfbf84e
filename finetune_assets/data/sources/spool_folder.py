"""Where rows of queries, functions and the hub wait to be read as files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_assets import settings
from finetune_assets.processes.identity import is_gone, this_process


@contextmanager
def spool_folder() -> Iterator[Path]:
    """Give a folder for rows of sources that are no files; remove what killed runs left."""
    parent = settings.local_state_folder() / "spool"
    for left in parent.glob("*") if parent.exists() else ():
        if is_gone(left.name):
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / this_process()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
