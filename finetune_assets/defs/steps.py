"""How every asset is made: fingerprint, reuse, MLflow run, work, manifest."""

import inspect
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import dagster as dg

from finetune_assets.catalog.load import Entry, load
from finetune_assets.defs import metadata
from finetune_assets.defs.metadata import Metadata
from finetune_assets.defs.partitions import OWNER, Force, datasets
from finetune_assets.defs.resources import ArtifactStore, Tracking
from finetune_assets.errors import UserError
from finetune_assets.launch.launcher import Launcher
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import MANIFEST, Manifest
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


@dataclass(frozen=True)
class Step:
    """The making of a dataset's artifacts by one asset, as Dagster has asked for it."""

    context: dg.AssetExecutionContext
    entry: Entry
    tracking: Tracking
    force: bool


def make(
    step: Step,
    asset: str,
    config: Mapping[str, object],
    upstream: Mapping[str, Manifest],
    publish: Callable[[Manifest], None],
) -> tuple[Manifest, bool]:
    """Return the artifact of an asset, and whether it was there already.

    Args:
        config: what the result depends on; part of the fingerprint.
        publish: makes and publishes the artifact of a manifest, in this process or another.
    """
    dataset, identity = step.entry.name, identify(asset, config, upstream)
    if not step.force and (found := artifacts.find(asset, dataset, identity)):
        step.context.log.info(f"reusing {found.uri}: inputs, configuration and code are unchanged")
        return found, True
    manifest = Manifest(
        asset=asset,
        dataset=dataset,
        fingerprint=identity,
        data_version=identity,
        upstream=_versions(upstream),
        config=dict(config),
        code_version=CODE_VERSIONS[asset],
        git_commit=git_commit(),
        libraries=_libraries(asset),
    )
    with step.tracking.follow(step.context, manifest, upstream):
        publish(manifest)
        made = artifacts.read(f"{manifest.uri}/{MANIFEST}")
        step.tracking.record(made)
    return made, False


Inputs = dict[str, Manifest]
"""Upstream artifacts by asset."""


@dataclass(frozen=True)
class Needs:
    """What one artifact is made from."""

    config: Mapping[str, object]
    """What the result depends on; part of the fingerprint."""
    inputs: Inputs
    extra: Callable[[], Mapping[str, object]] = dict
    """Gives what the worker is told besides, which is no part of the fingerprint; called only if a
    worker is started."""


@dataclass(frozen=True)
class Made:
    """An artifact that was made, or found because it was made before."""

    manifest: Manifest
    reused: bool
    entry: Entry
    inputs: Inputs


Page = tuple[Metadata, Sequence[dg.AssetCheckResult]]
"""What the page of an asset shows, and what its checks found."""


def made_by_worker(
    *,
    deps: Sequence[str],
    kinds: set[str],
    page: Callable[[Made], Page],
    pool: str | None = None,
    op_tags: Mapping[str, object] | None = None,
    check_specs: Sequence[dg.AssetCheckSpec] = (),
) -> Callable[[Callable[[Entry, Inputs], Needs]], dg.AssetsDefinition]:
    """Turn a function that says what an artifact needs into the asset that a worker makes of it.

    The function's name and docstring become those of the asset.
    """

    def decorate(needs_of: Callable[[Entry, Inputs], Needs]) -> dg.AssetsDefinition:
        name = needs_of.__name__

        @dg.asset(
            name=name,
            description=inspect.getdoc(needs_of),
            deps=deps,
            partitions_def=datasets,
            group_name="models",
            owners=[OWNER],
            kinds=kinds,
            pool=pool,
            op_tags=op_tags,
            code_version=CODE_VERSIONS[name],
            check_specs=check_specs,
        )
        def asset(
            context: dg.AssetExecutionContext,
            config: Force,
            launcher: Launcher,
            store: ArtifactStore,
            tracking: Tracking,
        ) -> dg.MaterializeResult:
            with explain_failures():
                step = Step(context, load(context.partition_key), tracking, config.force)
                needs = needs_of(step.entry, store.upstream(context, *deps))
                publish = partial(_launch, launcher, step, needs)
                manifest, reused = make(step, name, needs.config, needs.inputs, publish)
                shown, checks = page(Made(manifest, reused, step.entry, needs.inputs))
            return metadata.result(manifest, reused, shown, checks)

        return asset

    return decorate


def _launch(launcher: Launcher, step: Step, needs: Needs, manifest: Manifest) -> None:
    """Have a worker make and publish the artifact of a manifest."""
    job = Job(
        manifest=manifest,
        inputs={asset: f"{made.uri}/{MANIFEST}" for asset, made in needs.inputs.items()},
        config={**needs.config, **needs.extra()},
        where=step.entry.uri,
        dagster_run_id=step.context.run.run_id,
    )
    launcher.launch(step.context, manifest.asset, job)


def identify(asset: str, config: Mapping[str, object], upstream: Mapping[str, Manifest]) -> str:
    """Return the fingerprint of what an asset makes from these inputs with this code."""
    versions = _versions(upstream)
    return fingerprint(asset, CODE_VERSIONS[asset], config, versions, _libraries(asset))


def _versions(upstream: Mapping[str, Manifest]) -> dict[str, str]:
    return {name: manifest.data_version for name, manifest in upstream.items()}


def _libraries(asset: str) -> dict[str, str]:
    return library_versions(*LIBRARIES.get(asset, ()))


@contextmanager
def explain_failures() -> Iterator[None]:
    """Turn a user's error into a Dagster failure without a stack of frames."""
    try:
        yield
    except UserError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


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
