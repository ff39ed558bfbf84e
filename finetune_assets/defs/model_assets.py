"""From base and splits to a registered model; every one of these runs in a worker process."""

from typing import Any

import dagster as dg

from finetune_assets.catalog.load import Entry, load
from finetune_assets.defs import data_checks, metadata
from finetune_assets.defs.partitions import GPU_POOL, GPU_TAGS, OWNER, Force, datasets
from finetune_assets.defs.steps import CODE_VERSIONS, failing_readably, make, upstream
from finetune_assets.errors import UserError
from finetune_assets.models.bases.reference import BaseReference
from finetune_assets.storage import checkpoints

TOKEN_KEYS = ("max_length", "long_rows", "packing", "loss_mask", "documents")
"""Keys of `training:` that `training_sets` reads; `adapters` reads the others."""

HOW_KEYS = (
    "gradient_checkpointing",
    "torch_compile",
    "sample_prompts",
    "sample_max_new_tokens",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "price_per_hour",
)
"""Keys of `training:` that say how an adapter is made, not which: a change of one resumes the
checkpoints that are there, and retrains nothing."""

PARITY_PROMPTS = 4
"""Contexts of the validation split that adapter and merged model are compared on."""


@dg.asset(
    partitions_def=datasets,
    group_name="models",
    owners=[OWNER],
    kinds={"huggingface", "safetensors"},
    code_version=CODE_VERSIONS["base_models"],
)
def base_models(context: dg.AssetExecutionContext, config: Force) -> dg.MaterializeResult:
    """The base model, pinned, as safetensors with its tokenizer and chat template."""
    with failing_readably():
        entry = load(context.partition_key)
        base = BaseReference.of(entry)
        manifest, reused = make(
            context,
            entry,
            "base_models",
            config=base.identity(),
            extra_config={"chat_template": base.chat_template},
            upstream={},
            force=config.force,
        )
    return metadata.result(manifest, reused, metadata.base(manifest))


@dg.asset(
    deps=["train_splits", "validation_splits", base_models],
    partitions_def=datasets,
    group_name="models",
    owners=[OWNER],
    kinds={"huggingface", "parquet"},
    code_version=CODE_VERSIONS["training_sets"],
    check_specs=data_checks.specs("training_sets", data_checks.TRAINING_SET_CHECKS),
)
def training_sets(context: dg.AssetExecutionContext, config: Force) -> dg.MaterializeResult:
    """Tokens and labels in the base's chat template, packed, with loss on assistant turns only."""
    with failing_readably():
        entry = load(context.partition_key)
        training = entry.config.training.model_dump()
        made_of = upstream(context, "train_splits", "validation_splits", "base_models")
        manifest, reused = make(
            context,
            entry,
            "training_sets",
            config={key: training[key] for key in TOKEN_KEYS},
            upstream=made_of,
            force=config.force,
        )
        plan = data_checks.preflight_of(entry, made_of["base_models"], manifest)
    checks = data_checks.training_set(manifest, entry.config, plan)
    shown = metadata.training_set(manifest)
    if plan:
        shown["estimate"] = dg.MetadataValue.json(plan.record())
    return metadata.result(manifest, reused, shown, checks)


@dg.asset(
    deps=[training_sets, base_models],
    partitions_def=datasets,
    group_name="models",
    owners=[OWNER],
    kinds={"pytorch", "huggingface"},
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    code_version=CODE_VERSIONS["adapters"],
)
def adapters(context: dg.AssetExecutionContext, config: Force) -> dg.MaterializeResult:
    """The QLoRA adapter with the lowest validation loss, and its training curves."""
    with failing_readably():
        entry = load(context.partition_key)
        training = entry.config.training.model_dump()
        how = {*TOKEN_KEYS, *HOW_KEYS}
        made_of = upstream(context, "training_sets", "base_models")
        plan = data_checks.preflight_of(entry, made_of["base_models"], made_of["training_sets"])
        manifest, reused = make(
            context,
            entry,
            "adapters",
            config={key: value for key, value in training.items() if key not in how},
            extra_config={
                "checkpointing": plan.checkpointing if plan else None,
                **{key: training[key] for key in how},
            },
            upstream=made_of,
            force=config.force,
        )
        if reused:  # what a kill between publication and removal has left
            checkpoints.remove(manifest.fingerprint)
    return metadata.result(manifest, reused, metadata.adapter(manifest, plan))


@dg.asset(
    deps=[adapters, base_models, training_sets],
    partitions_def=datasets,
    group_name="models",
    owners=[OWNER],
    kinds={"pytorch", "safetensors"},
    pool=GPU_POOL,
    code_version=CODE_VERSIONS["merged_models"],
    check_specs=[
        dg.AssetCheckSpec(
            "logits_match_adapter",
            asset="merged_models",
            blocking=True,
            description="On real prompts the merged model's logits are those of base + adapter.",
        )
    ],
)
def merged_models(context: dg.AssetExecutionContext, config: Force) -> dg.MaterializeResult:
    """Base and adapter as one model in the base's own precision."""
    with failing_readably():
        entry = load(context.partition_key)
        manifest, reused = make(
            context,
            entry,
            "merged_models",
            config={"parity_prompts": PARITY_PROMPTS},
            upstream=upstream(context, "base_models", "adapters", "training_sets"),
            force=config.force,
        )
    return metadata.result(manifest, reused, metadata.merged(manifest), [metadata.parity(manifest)])


@dg.asset(
    deps=[merged_models, adapters, base_models, "test_splits"],
    partitions_def=datasets,
    group_name="models",
    owners=[OWNER],
    kinds={"pytorch", "html"},
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    code_version=CODE_VERSIONS["evaluation_reports"],
)
def evaluation_reports(context: dg.AssetExecutionContext, config: Force) -> dg.MaterializeResult:
    """Base, tuned and champion side by side on the same test rows."""
    with failing_readably():
        entry = load(context.partition_key)
        inputs = upstream(context, "base_models", "merged_models", "test_splits", "adapters")
        manifest, reused = make(
            context,
            entry,
            "evaluation_reports",
            config=_evaluation_config(entry),
            extra_config={"base_name": entry.config.base.model},
            upstream=inputs | _opponent(entry.name, inputs["merged_models"].data_version),
            force=config.force,
        )
    return metadata.result(manifest, reused, metadata.evaluation(manifest))


@dg.asset(
    deps=[merged_models, evaluation_reports],
    partitions_def=datasets,
    group_name="models",
    owners=[OWNER],
    kinds={"mlflow"},
    code_version=CODE_VERSIONS["registered_models"],
)
def registered_models(context: dg.AssetExecutionContext, config: Force) -> dg.MaterializeResult:
    """The model's version in MLflow: `challenger`, and `champion` if it is the better one."""
    with failing_readably():
        entry = load(context.partition_key)
        manifest, reused = make(
            context,
            entry,
            "registered_models",
            config=entry.config.promotion.model_dump(),
            upstream=upstream(context, "merged_models", "evaluation_reports"),
            force=config.force,
        )
    return metadata.result(manifest, reused, metadata.registered(manifest))


def _evaluation_config(entry: Entry) -> dict[str, Any]:
    from finetune_assets.catalog.config import SqlExecution

    evaluation = entry.config.evaluation
    scripts = [
        _text(entry.locate(m.database), entry.uri, "evaluation.metrics.database")
        for m in evaluation.metrics
        if isinstance(m, SqlExecution)
    ]
    return {
        "evaluation": {
            **evaluation.model_dump(exclude={"metrics"}),
            "metrics": evaluation.metric_names(),
            "sql_script": scripts[0] if scripts else None,
        },
        "primary_metric": entry.config.promotion.metric,
    }


def _opponent(dataset: str, merged_data_version: str) -> dict[str, Any]:
    from finetune_assets.registry.register import opponent
    from finetune_assets.storage import artifacts as artifacts

    champion = opponent(dataset, merged_data_version)
    if champion is None:
        return {}
    try:
        return {"champion": artifacts.read(champion.manifest_uri)}
    except UserError as error:
        raise UserError(
            error.where,
            f"the weights of the registered version {champion.version}, which is to be compared "
            f"with, are gone: {error.cause}",
            "restore the folder, or take the alias off that version in MLflow, and run again",
        ) from error


def _text(uri: str, where: str, key: str) -> str:
    import fsspec

    try:
        with fsspec.open(uri, "r") as file:
            return file.read()  # pyright: ignore
    except FileNotFoundError as error:
        raise UserError(where, f"`{key}`: no such file {uri}", "mend the path") from error
