"""What every asset works with, besides its worker: the artifact store and MLflow."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from finetune_assets.errors import UserError
from finetune_assets.registry import tracking
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import Manifest, Record

Work = Callable[[Manifest, Path], Record]
"""Writes an artifact's files into a folder and returns what it measured."""


class ArtifactStore(dg.ConfigurableResource):
    """The artifacts of every asset, and which of them are the newest by Dagster's event log."""

    def publish(self, work: Work, manifest: Manifest) -> None:
        """Make an artifact in this process, and publish it when that has ended well."""
        with artifacts.writing(manifest) as out:
            record = work(manifest, out)
            manifest.statistics = record.model_dump(mode="json", exclude_unset=True)

    def upstream(self, context: dg.AssetExecutionContext, *assets: str) -> dict[str, Manifest]:
        """Return the newest artifacts of these assets; a UserError if one is not there."""
        found = {}
        for asset in assets:
            uri = newest_uri(context.instance, asset, context.partition_key)
            if uri is None:
                where = f"{asset} of '{context.partition_key}'"
                raise UserError(where, "it was never materialized", f"materialize {asset} first")
            found[asset] = artifacts.read(uri)
        return found

    def previous(self, context: dg.AssetExecutionContext, asset: str) -> Manifest | None:
        """Return what this asset was before; None if it never was, or its files are gone."""
        uri = newest_uri(context.instance, asset, context.partition_key)
        try:
            return artifacts.read(uri) if uri else None
        except UserError as error:
            context.log.warning(f"no comparison with the last materialization: {error}")
            return None


class Tracking(dg.ConfigurableResource):
    """MLflow runs of what is made; what is reused gets none."""

    @contextmanager
    def follow(
        self, context: dg.AssetExecutionContext, manifest: Manifest, inputs: Mapping[str, Manifest]
    ) -> Iterator[None]:
        """Keep one MLflow run around the work; its status is what really happened."""
        root, dataset = context.run.root_run_id or context.run.run_id, manifest.dataset
        tags = {
            tracking.RUN: context.run.run_id,
            tracking.FINGERPRINT: manifest.fingerprint,
            "finetune.git_commit": manifest.git_commit or "",
            **{f"finetune.upstream.{k}": v for k, v in manifest.upstream.items()},
        }
        run_id = manifest.mlflow_run_id = tracking.start_run(dataset, manifest.asset, root, tags)
        context.log.info(f"MLflow run: {tracking.run_url(dataset, run_id)}")
        status: tracking.Status = "FAILED"
        try:
            if inputs:
                tracking.log_inputs(run_id, inputs)
            yield
            status = "FINISHED"
        except (DagsterExecutionInterruptedError, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            tracking.finish_run(run_id, status)

    def record(self, manifest: Manifest) -> None:
        """Tell MLflow what was read and what came out."""
        run_id = manifest.mlflow_run_id
        assert run_id is not None
        tracking.log_parameters(run_id, manifest.config)
        tags = {"finetune.data_version": manifest.data_version, "finetune.artifact": manifest.uri}
        tracking.set_tags(run_id, tags)
        numbers = {
            key: float(value)
            for key, value in manifest.statistics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        # At the last step, where a series of the same name ends.
        last = int(numbers.get("steps", 0))
        tracking.log_metrics(run_id, numbers | {"seconds": manifest.seconds}, last)


def newest(
    instance: dg.DagsterInstance, asset: str, dataset: str
) -> tuple[dg.AssetMaterialization, int] | None:
    """Return an asset's newest materialization, if there is one, and its place in the event log."""
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[dataset]), limit=1
    ).records
    made = found[0].asset_materialization if found else None
    return (made, found[0].storage_id) if made else None


def newest_uri(instance: dg.DagsterInstance, asset: str, dataset: str) -> str | None:
    """Return the URI of the manifest of an asset's newest materialization, if there is one."""
    found = newest(instance, asset, dataset)
    return str(found[0].metadata["manifest"].value) if found else None
