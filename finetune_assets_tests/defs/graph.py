"""What runs of the whole graph have made of dataset `tiny`, and one more run."""

import uuid
from typing import Any

import dagster as dg

from finetune_assets.commands.run import execute
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import Manifest

ASSETS = {
    "raw_datasets",
    "prompt_corpora",
    "train_splits",
    "validation_splits",
    "test_splits",
    "base_models",
    "training_sets",
    "adapters",
    "merged_models",
    "evaluation_reports",
    "registered_models",
}


def materializations(run_id: str | None = None) -> dict[str, dict[str, Any]]:
    """Return metadata of the newest materialization of each asset (of a run)."""
    found: dict[str, dict[str, Any]] = {}
    with dg.DagsterInstance.get() as instance:
        for asset in ASSETS:
            records = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
            for record in records:
                if run_id is None or record.run_id == run_id:
                    assert record.asset_materialization is not None
                    metadata = record.asset_materialization.metadata
                    found[asset] = {k: v.value for k, v in metadata.items()}
    return found


def run_again() -> dict[str, dict[str, Any]]:
    """Run the whole graph in this process; return the metadata that it wrote."""
    run_id = str(uuid.uuid4())
    assert execute("tiny", run_id, force=False)
    return materializations(run_id)


def made(shown: dict[str, dict[str, Any]]) -> set[str]:
    """Return the assets that were made and not reused, of metadata of all."""
    assert set(shown) == ASSETS
    return {asset for asset, metadata in shown.items() if not metadata["reused"]}


def manifest(asset: str) -> Manifest:
    """Return the manifest of the newest artifact."""
    return artifacts.read(str(materializations()[asset]["manifest"]))
