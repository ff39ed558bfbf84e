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

    def find(self, asset: str, dataset: str, fingerprint: str) -> Manifest | None:
        """Return the complete artifact with this fingerprint, or None."""
        return artifacts.find(asset, dataset, fingerprint)

    def read(self, manifest_uri: str) -> Manifest:
        """Return an artifact that must exist.

        Raises:
            UserError: it was removed or damaged since it was made.
        """
        return artifacts.read(manifest_uri)

    def publish(self, work: Work, manifest: Manifest) -> None:
        """Make an artifact in this process, and publish it when that has ended well."""
        with artifacts.writing(manifest) as out:
            record = work(manifest, out)
            manifest.statistics = record.model_dump(mode="json", exclude_unset=True)

    def upstream(self, context: dg.AssetExecutionContext, *assets: str) -> dict[str, Manifest]:
        """Return the newest artifacts of these assets for this dataset.

        Raises:
            UserError: one was never made, or is gone.
        """
        return {asset: self._newest(context, asset) for asset in assets}

    def previous(self, context: dg.AssetExecutionContext, asset: str) -> Manifest | None:
        """Return what this asset was before; None if it never was, or its files are gone."""
        uri = newest_uri(context.instance, asset, context.partition_key)
        try:
            return self.read(uri) if uri else None
        except UserError as error:
            context.log.warning(f"no comparison with the last materialization: {error}")
            return None

    def _newest(self, context: dg.AssetExecutionContext, asset: str) -> Manifest:
        uri = newest_uri(context.instance, asset, context.partition_key)
        if uri is None:
            raise UserError(
                f"{asset} of '{context.partition_key}'",
                "it was never materialized",
                f"materialize {asset} first",
            )
        return self.read(uri)


class Tracking(dg.ConfigurableResource):
    """MLflow runs of what is made; what is reused gets none."""

    @contextmanager
    def follow(
        self,
        context: dg.AssetExecutionContext,
        manifest: Manifest,
        upstream: Mapping[str, Manifest],
    ) -> Iterator[None]:
        """Keep one MLflow run around the work; its status is what really happened."""
        run = context.run
        run_id = tracking.start_run(
            manifest.dataset,
            manifest.asset,
            run.root_run_id or run.run_id,
            {
                tracking.RUN: run.run_id,
                tracking.FINGERPRINT: manifest.fingerprint,
                "finetune.git_commit": manifest.git_commit or "",
                **{f"finetune.upstream.{k}": v for k, v in manifest.upstream.items()},
            },
        )
        manifest.mlflow_run_id = run_id
        context.log.info(f"MLflow run: {tracking.run_url(manifest.dataset, run_id)}")
        try:
            if upstream:
                tracking.log_inputs(run_id, _inputs(manifest.dataset, upstream))
            yield
        except (DagsterExecutionInterruptedError, KeyboardInterrupt):
            tracking.finish_run(run_id, "KILLED")
            raise
        except BaseException:
            tracking.finish_run(run_id, "FAILED")
            raise
        tracking.finish_run(run_id, "FINISHED")

    def record(self, manifest: Manifest) -> None:
        """Tell MLflow what was read and what came out."""
        assert manifest.mlflow_run_id is not None
        tracking.log_parameters(manifest.mlflow_run_id, manifest.config)
        tracking.set_tags(
            manifest.mlflow_run_id,
            {"finetune.data_version": manifest.data_version, "finetune.artifact": manifest.uri},
        )
        numbers = {
            key: float(value)
            for key, value in manifest.statistics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        # At the last step, where a series of the same name ends.
        last = int(numbers.get("steps", 0))
        tracking.log_metrics(manifest.mlflow_run_id, numbers | {"seconds": manifest.seconds}, last)


def newest_uri(instance: dg.DagsterInstance, asset: str, dataset: str) -> str | None:
    """Return the URI of the manifest of an asset's newest materialization, if there is one."""
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[dataset]), limit=1
    ).records
    materialization = found[0].asset_materialization if found else None
    return str(materialization.metadata["manifest"].value) if materialization else None


def _inputs(dataset: str, upstream: Mapping[str, Manifest]) -> dict[str, tracking.Input]:
    """Describe the data that a run reads to MLflow."""
    return {
        asset: {
            "name": f"{asset}/{dataset}",
            "digest": made.data_version,
            "uri": made.uri,
            "profile": {k: v for k, v in made.statistics.items() if isinstance(v, int)},
        }
        for asset, made in upstream.items()
    }
