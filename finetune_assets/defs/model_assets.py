"""From base and splits to a registered model; every one of these runs in a worker process."""

import fsspec

from finetune_assets.catalog.config import SqlExecution
from finetune_assets.catalog.load import Entry
from finetune_assets.catalog.remakes import ADAPTERS, NOTHING, TRAINING_SETS, dump
from finetune_assets.defs import data_checks, metadata, model_checks
from finetune_assets.defs.partitions import GPU_POOL, GPU_TAGS
from finetune_assets.defs.steps import Inputs, Made, Needs, Page, identify, made_by_worker
from finetune_assets.errors import UserError
from finetune_assets.models.bases.reference import BaseReference
from finetune_assets.models.records import AdapterRecord, MergedRecord, TrainingSetRecord
from finetune_assets.registry.register import opponent
from finetune_assets.storage import artifacts, checkpoints

PARITY_PROMPTS = 4
"""Contexts of the validation split that adapter and merged model are compared on."""


@made_by_worker(
    deps=[],
    kinds={"huggingface", "safetensors"},
    page=lambda made: (metadata.base(made.manifest), ()),
)
def base_models(entry: Entry, inputs: Inputs) -> Needs:
    """The base model, pinned, as safetensors with its tokenizer and chat template."""
    base = BaseReference.of(entry)
    return Needs(base.identity(), inputs, lambda: {"chat_template": base.chat_template})


def _training_set_page(made: Made) -> Page:
    """Estimate what training will need, unless the adapter that it would make is there."""
    record, config = made.manifest.record(TrainingSetRecord), made.entry.config
    made_of = {"training_sets": made.manifest, "base_models": made.inputs["base_models"]}
    identity = identify("adapters", dump(config.training, ADAPTERS), made_of)
    trained = artifacts.find("adapters", made.entry.name, identity) if made.reused else None
    if trained is not None:
        plan = trained.record(AdapterRecord).plan
        fits = model_checks.has_fitted(plan)
    else:
        estimate = model_checks.preflight_of(made.entry, made_of["base_models"], made.manifest)
        plan = estimate.record() if estimate else None
        fits = model_checks.fits_the_machine(estimate, config.checks.memory)
    checks = [*model_checks.training_set(record, config), fits]
    return metadata.training_set(made.manifest, plan), checks


@made_by_worker(
    deps=["train_splits", "validation_splits", "base_models"],
    kinds={"huggingface", "parquet"},
    page=_training_set_page,
    check_specs=data_checks.specs("training_sets", model_checks.TRAINING_SET_CHECKS),
)
def training_sets(entry: Entry, inputs: Inputs) -> Needs:
    """Tokens and labels in the base's chat template, packed, with loss on assistant turns only."""
    return Needs(dump(entry.config.training, TRAINING_SETS), inputs)


def _adapter_page(made: Made) -> Page:
    if made.reused:  # what a kill between publication and removal has left
        checkpoints.remove(made.manifest.fingerprint)
    return metadata.adapter(made.manifest), ()


@made_by_worker(
    deps=["training_sets", "base_models"],
    kinds={"pytorch", "huggingface"},
    page=_adapter_page,
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
)
def adapters(entry: Entry, inputs: Inputs) -> Needs:
    """The QLoRA adapter with the lowest validation loss, and its training curves."""
    training = entry.config.training

    def extra() -> dict[str, object]:
        plan = model_checks.preflight_of(entry, inputs["base_models"], inputs["training_sets"])
        return {
            "checkpointing": plan.checkpointing if plan else None,
            "plan": plan.record().model_dump() if plan else None,
            **dump(training, TRAINING_SETS),
            **dump(training, NOTHING),
        }

    return Needs(dump(training, ADAPTERS), inputs, extra)


def _merged_page(made: Made) -> Page:
    record = made.manifest.record(MergedRecord)
    return metadata.merged(made.manifest), [model_checks.parity(record)]


@made_by_worker(
    deps=["base_models", "adapters", "training_sets"],
    kinds={"pytorch", "safetensors"},
    page=_merged_page,
    pool=GPU_POOL,
    check_specs=[model_checks.PARITY],
)
def merged_models(entry: Entry, inputs: Inputs) -> Needs:
    """Base and adapter as one model in the base's own precision."""
    return Needs({"parity_prompts": PARITY_PROMPTS}, inputs)


@made_by_worker(
    deps=["base_models", "merged_models", "test_splits", "adapters"],
    kinds={"pytorch", "html"},
    page=lambda made: (metadata.evaluation(made.manifest), ()),
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
)
def evaluation_reports(entry: Entry, inputs: Inputs) -> Needs:
    """Base, tuned and champion side by side on the same test rows."""
    inputs = inputs | _opponent(entry.name, inputs["merged_models"].data_version)
    return Needs(_evaluation_config(entry), inputs, lambda: {"base_name": entry.config.base.model})


@made_by_worker(
    deps=["merged_models", "evaluation_reports"],
    kinds={"mlflow"},
    page=lambda made: (metadata.registered(made.manifest), ()),
)
def registered_models(entry: Entry, inputs: Inputs) -> Needs:
    """The model's version in MLflow: `challenger`, and `champion` if it is the better one."""
    return Needs(entry.config.promotion.model_dump(), inputs)


def _evaluation_config(entry: Entry) -> dict[str, object]:
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


def _opponent(dataset: str, merged_data_version: str) -> Inputs:
    champion = opponent(dataset, merged_data_version)
    if champion is None:
        return {}
    try:
        return {"champion": artifacts.read(champion.manifest_uri)}
    except UserError as error:
        cause = f"the weights of the registered version {champion.version}, which is to be compared"
        cause += f" with, are gone: {error.cause}"
        remedy = "restore the folder, or take the alias off that version in MLflow, and run again"
        raise UserError(error.where, cause, remedy) from error


def _text(uri: str, where: str, key: str) -> str:
    try:
        with fsspec.open(uri, "r") as file:
            return file.read()  # pyright: ignore
    except FileNotFoundError as error:
        raise UserError(where, f"`{key}`: no such file {uri}", "mend the path") from error
