"""How every asset is made: fingerprint, reuse, MLflow run, work, manifest."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from finetune_assets.catalog.load import Entry
from finetune_assets.errors import UserError
from finetune_assets.storage import artifacts as artifacts
from finetune_assets.storage.artifacts import MANIFEST, Manifest, Record
from finetune_assets.storage.fingerprint import fingerprint, library_versions
from finetune_assets.storage.job import Job

CODE_VERSIONS = {
    "raw_datasets": "2",
    "prompt_corpora": "2",
    "train_splits": "2",
    "validation_splits": "2",
    "test_splits": "2",
    "base_models": "1",
    "training_sets": "4",
    "adapters": "3",
    "merged_models": "2",
    "evaluation_reports": "1",
    "registered_models": "1",
}
"""Raised when a task's result changes for the same inputs; part of its fingerprint."""

LIBRARIES = {
    "prompt_corpora": ("polars", "rensa", "rapidfuzz", "ftfy", "phonenumbers"),
    "base_models": ("transformers", "gguf"),
    "training_sets": ("transformers", "tokenizers"),
    "adapters": ("torch", "transformers", "peft", "trl", "bitsandbytes"),
    "merged_models": ("torch", "transformers", "peft"),
    "evaluation_reports": ("torch", "transformers"),
}
"""Libraries whose release can change a task's result."""

Work = Callable[[Manifest, Path], Record]


def make(
    context: dg.AssetExecutionContext,
    entry: Entry,
    asset: str,
    *,
    config: Mapping[str, Any],
    upstream: Mapping[str, Manifest],
    force: bool,
    work: Work | None = None,
    extra_config: Mapping[str, Any] | None = None,
) -> tuple[Manifest, bool]:
    """The artifact of an asset, and whether it was there already.

    Args:
        config: what the result depends on; part of the fingerprint.
        extra_config: what the worker needs besides (paths), not part of the fingerprint.
        work: makes the artifact in this process; without it a worker process does.

    Raises:
        dagster.Failure: something a user can mend.
    """
    versions = {name: m.data_version for name, m in upstream.items()}
    libraries = library_versions(*LIBRARIES.get(asset, ()))
    identity = fingerprint(asset, CODE_VERSIONS[asset], config, versions, libraries)
    if not force and (found := artifacts.find(asset, entry.name, identity)):
        context.log.info(f"reusing {found.uri}: inputs, configuration and code are unchanged")
        return found, True
    manifest = Manifest(
        asset=asset,
        dataset=entry.name,
        fingerprint=identity,
        data_version=identity,
        upstream=versions,
        config=dict(config),
        code_version=CODE_VERSIONS[asset],
        git_commit=git_commit(),
        libraries=libraries,
    )
    with tracked(context, manifest):
        _record_inputs(manifest, upstream)
        if work is not None:
            with artifacts.writing(manifest) as out:
                record = work(manifest, out)
                manifest.statistics = record.model_dump(mode="json", exclude_unset=True)
        else:
            job = Job(
                manifest=manifest,
                inputs={name: f"{m.uri}/{MANIFEST}" for name, m in upstream.items()},
                config={**config, **(extra_config or {})},
                where=entry.uri,
                dagster_run_id=context.run.run_id,
            )
            run_worker(context, asset, job)
        made = artifacts.read(f"{manifest.uri}/{MANIFEST}")
        _record(made)
    return made, False


def run_worker(context: dg.AssetExecutionContext, asset: str, job: Job) -> None:
    """Make an artifact in a process group of its own."""
    from finetune_assets.launch.process_group import ProcessGroupClient

    ProcessGroupClient().run(
        context,
        command=[sys.executable, "-m", "finetune_assets.launch.worker", asset],
        extras=job.model_dump(mode="json"),
    )


@contextmanager
def tracked(context: dg.AssetExecutionContext, manifest: Manifest) -> Iterator[None]:
    """One MLflow run around the work; its status is what really happened."""
    from dagster._core.errors import DagsterExecutionInterruptedError

    from finetune_assets.registry import tracking

    run = context.run
    run_id = tracking.start_run(
        manifest.dataset,
        manifest.asset,
        run.root_run_id or run.run_id,
        {
            "dagster.run_id": run.run_id,
            "finetune.fingerprint": manifest.fingerprint,
            "finetune.git_commit": manifest.git_commit or "",
            **{f"finetune.upstream.{k}": v for k, v in manifest.upstream.items()},
        },
    )
    manifest.mlflow_run_id = run_id
    context.log.info(f"MLflow run: {tracking.run_url(manifest.dataset, run_id)}")
    try:
        yield
    except (DagsterExecutionInterruptedError, KeyboardInterrupt):
        tracking.finish_run(run_id, "KILLED")
        raise
    except UserError as error:
        tracking.finish_run(run_id, "FAILED")
        raise dg.Failure(description=str(error), allow_retries=False) from None
    except BaseException:
        tracking.finish_run(run_id, "FAILED")
        raise
    tracking.finish_run(run_id, "FINISHED")


@contextmanager
def failing_readably() -> Iterator[None]:
    """Turn a user's error into a Dagster failure without a stack of frames."""
    try:
        yield
    except UserError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def upstream(context: dg.AssetExecutionContext, *assets: str) -> dict[str, Manifest]:
    """Manifests of the newest materializations of these assets for this dataset."""
    return {asset: _newest(context, asset) for asset in assets}


def previous(context: dg.AssetExecutionContext, asset: str) -> Manifest | None:
    """Manifest of what this asset was before; None if it never was, or its files are gone."""
    uri = _newest_uri(context, asset)
    try:
        return artifacts.read(uri) if uri else None
    except UserError as error:
        context.log.warning(f"no comparison with the last materialization: {error}")
        return None


def _newest(context: dg.AssetExecutionContext, asset: str) -> Manifest:
    uri = _newest_uri(context, asset)
    if uri is None:
        raise UserError(
            f"{asset} of '{context.partition_key}'",
            "it was never materialized",
            f"materialize {asset} first",
        )
    return artifacts.read(uri)


def _newest_uri(context: dg.AssetExecutionContext, asset: str) -> str | None:
    partition = context.partition_key
    found = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition]), limit=1
    ).records
    materialization = found[0].asset_materialization if found else None
    return str(materialization.metadata["manifest"].value) if materialization else None


def _record_inputs(manifest: Manifest, upstream: Mapping[str, Manifest]) -> None:
    """Tell MLflow, before the work begins, which data it reads."""
    from finetune_assets.registry import tracking

    assert manifest.mlflow_run_id is not None
    if upstream:
        tracking.log_inputs(
            manifest.mlflow_run_id,
            {
                asset: {
                    "name": f"{asset}/{manifest.dataset}",
                    "digest": made.data_version,
                    "uri": made.uri,
                    "profile": {k: v for k, v in made.statistics.items() if isinstance(v, int)},
                }
                for asset, made in upstream.items()
            },
        )


def _record(manifest: Manifest) -> None:
    """Tell MLflow what was read and what came out."""
    from finetune_assets.registry import tracking

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


@cache
def git_commit() -> str | None:
    """Commit of the project, with `+` if there are changes on top; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:  # git is no requirement of a deployment
        return None
    return done.stdout.strip() or None
