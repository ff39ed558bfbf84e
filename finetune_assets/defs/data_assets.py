"""From sources to splits: raw_datasets, prompt_corpora and the three splits."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg

from finetune_assets.catalog.load import load
from finetune_assets.catalog.remakes import PROMPT_CORPORA, TEST_SPLITS, dump
from finetune_assets.data.corpora.corpus_record import CorpusRecord
from finetune_assets.data.sources.raw_record import RawRecord
from finetune_assets.data.sources.spool_folder import spool_folder
from finetune_assets.data.splits.split_record import SplitRecord
from finetune_assets.defs import data_checks, data_metadata, metadata
from finetune_assets.defs.partitions import OWNER, Force, datasets
from finetune_assets.defs.progress import RowProgress
from finetune_assets.defs.resources import ArtifactStore, Tracking
from finetune_assets.defs.steps import CODE_VERSIONS, Step, explain_failures, make
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import Manifest

SPLIT_ASSETS = ("train_splits", "validation_splits", "test_splits")


@dg.asset(
    partitions_def=datasets,
    group_name="data",
    owners=[OWNER],
    kinds={"polars", "parquet"},
    code_version=CODE_VERSIONS["raw_datasets"],
)
def raw_datasets(
    context: dg.AssetExecutionContext, config: Force, store: ArtifactStore, tracking: Tracking
) -> dg.MaterializeResult:
    """The rows of the dataset's sources as they arrived, each with its file and line."""
    with explain_failures(), spool_folder() as scratch:
        from finetune_assets.data.sources import sources

        step = Step(context, load(context.partition_key), tracking, config.force)
        declared = step.entry.config.sources
        pinned = sources.pin(step.entry, scratch)

        def work(manifest: Manifest, out: Path) -> RawRecord:
            from finetune_assets.data.sources.raw import write_raw

            manifest.data_version = sources.content_version(pinned, declared)
            return write_raw(pinned, declared, out)

        read = {"files": [[p.name, p.sha256, declared[p.source_index].sample] for p in pinned]}
        manifest, reused = make(step, "raw_datasets", read, {}, partial(store.publish, work))
    return metadata.result(manifest, reused, data_metadata.raw(manifest))


@dg.asset(
    deps=[raw_datasets],
    partitions_def=datasets,
    group_name="data",
    owners=[OWNER],
    kinds={"polars", "parquet"},
    code_version=CODE_VERSIONS["prompt_corpora"],
    check_specs=data_checks.specs("prompt_corpora", data_checks.CORPUS_CHECKS),
)
def prompt_corpora(
    context: dg.AssetExecutionContext, config: Force, store: ArtifactStore, tracking: Tracking
) -> dg.MaterializeResult:
    """The dataset as clean conversations; what was removed beside them with file, line, reason."""
    with explain_failures():
        step = Step(context, load(context.partition_key), tracking, config.force)
        entry, inputs = step.entry, store.upstream(context, "raw_datasets")
        before = store.previous(context, "prompt_corpora")

        def work(manifest: Manifest, out: Path) -> CorpusRecord:
            from finetune_assets.data.corpora.corpus import write_corpus

            raw = inputs["raw_datasets"]
            progress = RowProgress(context.log.info, raw.record(RawRecord).rows)
            rows = artifacts.local_copy(raw) / "rows.parquet"
            record, manifest.data_version = write_corpus(
                rows, entry.config, out, entry.uri, progress
            )
            return record

        read = {
            "sources": [dump(s, PROMPT_CORPORA) for s in entry.config.sources],
            "split_column": entry.config.splits.column,
            "cleaning": entry.config.cleaning.model_dump(),
            "max_rejected": entry.config.max_rejected,
        }
        publish = partial(store.publish, work)
        manifest, reused = make(step, "prompt_corpora", read, inputs, publish)
        shown = data_metadata.corpus(manifest, before)
        checks = data_checks.corpus(manifest, before, entry.config)
    return metadata.result(manifest, reused, shown, checks)


@dg.multi_asset(
    name="splits",
    specs=[
        dg.AssetSpec(
            name,
            deps=[prompt_corpora],
            description=f"The conversations of the {name.split('_')[0]} split, as Parquet.",
            group_name="data",
            owners=[OWNER],
            kinds={"polars", "parquet"},
            code_version=CODE_VERSIONS[name],
        )
        for name in SPLIT_ASSETS
    ],
    check_specs=data_checks.specs("test_splits", data_checks.TEST_SPLIT_CHECKS),
    partitions_def=datasets,
)
def splits(
    context: dg.AssetExecutionContext, config: Force, store: ArtifactStore, tracking: Tracking
) -> Iterator[dg.MaterializeResult]:
    """Divide the corpus so that the same question, or nearly the same, never is in two splits."""
    results = []
    with explain_failures():
        from finetune_assets.data.splits.benchmarks import pinned_benchmarks
        from finetune_assets.data.splits.division import Division

        step = Step(context, load(context.partition_key), tracking, config.force)
        entry, inputs = step.entry, store.upstream(context, "prompt_corpora")
        folder = artifacts.local_copy(inputs["prompt_corpora"])
        division = Division(folder, entry.config, entry.uri, entry.locate)
        weights = [source.weight for source in entry.config.sources]
        read = {**entry.config.splits.model_dump(), "weights": weights}
        compared = dump(entry.config.contamination, TEST_SPLITS)
        compared["benchmarks"] = pinned_benchmarks(entry)

        def work(manifest: Manifest, out: Path) -> SplitRecord:
            split = manifest.asset.removesuffix("_splits")
            record, manifest.data_version = division.write(split, out)
            return record

        for name in SPLIT_ASSETS:
            tests = name == "test_splits"
            config_read = read | {"contamination": compared} if tests else read
            manifest, reused = make(step, name, config_read, inputs, partial(store.publish, work))
            checks = data_checks.test_split(manifest, entry.config) if tests else []
            shown = metadata.result(manifest, reused, data_metadata.split(manifest), checks)
            results.append(shown._replace(asset_key=dg.AssetKey(name)))
    yield from results
