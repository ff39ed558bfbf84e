"""What a worker process is told: the artifact to make, and where its inputs are."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import Manifest

PARENT = "FINETUNE_PARENT"
"""Variable with the number of the process that a worker is to end with."""


class Job(BaseModel):
    """What a worker process makes, and from what."""

    model_config = ConfigDict(extra="forbid")
    manifest: Manifest
    """The artifact to make; files and statistics are still to be filled in."""
    inputs: dict[str, str] = {}
    """URI of the manifest of each upstream artifact, by asset."""
    config: dict[str, Any] = {}
    """The task's part of the dataset file, paths resolved."""
    where: str
    """The dataset file, named in errors."""
    dagster_run_id: str | None = None

    def input(self, asset: str) -> Manifest:
        """Return the manifest of an upstream artifact."""
        return artifacts.read(self.inputs[asset])

    def folder(self, asset: str) -> Path:
        """Return a local folder with an upstream artifact's files."""
        return artifacts.local_copy(self.input(asset))
