"""From files to splits: raw_datasets, prompt_corpora and the three splits."""

from pathlib import Path
from typing import Any

import dagster as dg

from finetune_assets.catalog.load import load
from finetune_assets.defs import metadata
from finetune_assets.defs.partitions import OWNER, Force, datasets
from finetune_assets.defs.steps import CODE_VERSIONS, failing_readably, make, upstream
from finetune_assets.storage import artefacts
from finetune_assets.storage.artefacts import Manifest

SPLIT_ASSETS = ("train_splits", "validation_splits", "test_splits")


@dg.asset(
    partitions_def=datasets,
    group_name="data",
    owners=[OWNER],
    kinds={"polars", "parquet"},
    code_version=CODE_VERSIONS["raw_datasets"],
)
def raw_datasets(context: dg.AssetExecutionContext, config: Force) -> dg.MaterializeResult:
    """The rows of the dataset's sources as they arrived, each with its file and line."""
    with failing_readably():
        from finetune_assets.corpora import sources

        entry = load(context.partition_key)
        declared = entry.config.sources
        pinned = sources.pin([entry.locate(s.path) for s in declared])

        def work(manifest: Manifest, out: Path) -> dict[str, Any]:
            from finetune_assets.corpora.tables import write_raw

            manifest.data_version = sources.content_version(pinned, declared)
            return write_raw(pinned, declared, out)

        manifest, reused = make(
            context,
            entry,
            "raw_datasets",
            config={"files": [[f.uri, f.sha256, declared[f.source_index].sample] for f in pinned]},
            upstream={},
            force=config.force,
            work=work,
        )
    return metadata.result(manifest, reused, metadata.raw(manifest))


@dg.asset(
    deps=[raw_datasets],
    partitions_def=datasets,
    group_name="data",
    owners=[OWNER],
    kinds={"polars", "parquet"},
    code_version=CODE_VERSIONS["prompt_corpora"],
    check_specs=[
        dg.AssetCheckSpec(
            "rows_usable",
            asset="prompt_corpora",
            description="Every row became a conversation; rejected rows are listed with reasons.",
        )
    ],
)
def prompt_corpora(context: dg.AssetExecutionContext, config: Force) -> dg.MaterializeResult:
    """The dataset as canonical conversations; unusable rows beside them with file, line, reason."""
    with failing_readably():
        entry = load(context.partition_key)
        inputs = upstream(context, "raw_datasets")
        sources = [s.model_dump(exclude={"path", "sample"}) for s in entry.config.sources]

        def work(manifest: Manifest, out: Path) -> dict[str, Any]:
            from finetune_assets.corpora.tables import write_corpus

            raw = artefacts.local_copy(inputs["raw_datasets"]) / "rows.parquet"
            statistics = write_corpus(raw, entry.config, out)
            manifest.data_version = statistics.pop("rows_hash")
            return statistics

        manifest, reused = make(
            context,
            entry,
            "prompt_corpora",
            config={
                "sources": sources,
                "split_column": entry.config.splits.column,
                "max_rejected": entry.config.max_rejected,
            },
            upstream=inputs,
            force=config.force,
            work=work,
        )
    rejected = manifest.statistics["rejected"]
    check = dg.AssetCheckResult(
        check_name="rows_usable",
        passed=rejected == 0,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{rejected} rows rejected" if rejected else "all rows are usable",
        metadata={"rejected": rejected},
    )
    return metadata.result(manifest, reused, metadata.corpus(manifest), [check])


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
    check_specs=[
        dg.AssetCheckSpec(
            "no_leaked_prompts",
            asset="test_splits",
            blocking=True,
            description="No normalised prompt occurs in more than one split.",
        )
    ],
    partitions_def=datasets,
)
def splits(context: dg.AssetExecutionContext, config: Force):
    """Divide the corpus so that the same question never is in two splits."""
    leaked = 0
    results = []
    with failing_readably():
        entry = load(context.partition_key)
        inputs = upstream(context, "prompt_corpora")
        for name in SPLIT_ASSETS:

            def work(manifest: Manifest, out: Path) -> dict[str, Any]:
                from finetune_assets.corpora.tables import write_split

                corpus = artefacts.local_copy(inputs["prompt_corpora"]) / "rows.parquet"
                kind = manifest.asset.removesuffix("_splits")
                statistics = write_split(corpus, entry.config.splits, kind, out, entry.uri)
                manifest.data_version = statistics.pop("rows_hash")
                return statistics

            manifest, reused = make(
                context,
                entry,
                name,
                config=entry.config.splits.model_dump(),
                upstream=inputs,
                force=config.force,
                work=work,
            )
            leaked = manifest.statistics["leaked_prompts"]
            results.append((name, metadata.result(manifest, reused, metadata.split(manifest))))
    for name, result in results:
        checks = (
            [
                dg.AssetCheckResult(
                    check_name="no_leaked_prompts",
                    passed=leaked == 0,
                    description=f"{leaked} prompts occur in more than one split",
                    metadata={"leaked_prompts": leaked},
                )
            ]
            if name == "test_splits"
            else []
        )
        yield result._replace(asset_key=dg.AssetKey(name), check_results=checks)
