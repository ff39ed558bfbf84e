"""What a worker process is told: the artefact to make, and where its inputs are."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune_assets.storage import artefacts
from finetune_assets.storage.artefacts import Manifest

PARENT = "FINETUNE_PARENT"
"""Variable with the number of the process that a worker is to end with."""


class Job(BaseModel):
    model_config = ConfigDict(extra="forbid")
    manifest: Manifest
    """The artefact to make; files and statistics are still to be filled in."""
    inputs: dict[str, str] = {}
    """URI of the manifest of each upstream artefact, by asset."""
    config: dict[str, Any] = {}
    """The task's part of the dataset file, paths resolved."""
    where: str
    """The dataset file, named in errors."""
    dagster_run_id: str | None = None

    def input(self, asset: str) -> Manifest:
        return artefacts.read(self.inputs[asset])

    def folder(self, asset: str) -> Any:
        """Local folder (a Path) with an upstream artefact's files."""
        return artefacts.local_copy(self.input(asset))
