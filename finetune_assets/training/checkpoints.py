"""Checkpoints on local disk, under the fingerprint of the adapter they lead to."""

import shutil
from pathlib import Path

from finetune_assets import settings

COMPLETE = "complete"
"""Written last into a checkpoint; a folder without it was cut short."""


def folder(fingerprint: str) -> Path:
    """Where the checkpoints of one adapter lie."""
    return settings.local_state_folder() / "checkpoints" / fingerprint


def mark_complete(checkpoint: Path) -> None:
    (checkpoint / COMPLETE).touch()


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint; those cut short by a kill are removed."""
    found = []
    for path in root.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            found.append(path)
        else:
            shutil.rmtree(path)
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)
