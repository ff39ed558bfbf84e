"""`python -m finetune_assets.launch.worker TASK`: the one entry point of every worker process.

Started through Dagster Pipes with a Job as extras; makes one artifact and publishes it.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dagster_pipes import open_dagster_pipes

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.evaluation.results import EvaluationRecord
from finetune_assets.launch.reporter import Reporter
from finetune_assets.models.bases.reference import BaseReference
from finetune_assets.models.records import (
    AdapterRecord,
    BaseRecord,
    MergedRecord,
    TrainingSetRecord,
)
from finetune_assets.processes.garbage import set_aside_garbage
from finetune_assets.processes.identity import end_with_parent
from finetune_assets.registry.promotion import RegisteredRecord
from finetune_assets.storage import artifacts, checkpoints
from finetune_assets.storage.artifacts import Record
from finetune_assets.storage.fingerprint import digest, file_digest
from finetune_assets.storage.job import PARENT, Job


def base_models(job: Job, out: Path, report: Reporter) -> BaseRecord:
    """Write the base model; its data version is the hash of its files."""
    from finetune_assets.models.bases.prepare import prepare

    base = BaseReference(job.config["model"], job.config.get("chat_template"), job.where)
    found = prepare(base, out)
    names = sorted(p for p in out.iterdir() if p.is_file())
    job.manifest.data_version = digest({p.name: file_digest(p) for p in names})
    return BaseRecord.model_validate(found)


def training_sets(job: Job, out: Path, report: Reporter) -> TrainingSetRecord:
    """Tokenise and pack the splits, in a process that never loads torch."""
    # Tokenizers need no torch, whose import takes 3 s and 280 MB; None forbids it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # of which one is that there is no torch
    from finetune_assets.models.tokenization.training_set import build

    parts = ("train", "validation")
    splits = {name: job.folder(f"{name}_splits") / "rows.parquet" for name in parts}
    base, training = job.folder("base_models"), Training.model_validate(job.config)
    found = build(base, splits, out, where=job.where, training=training, progress=report.log)
    return TrainingSetRecord.model_validate(found)


def adapters(job: Job, out: Path, report: Reporter) -> AdapterRecord:
    """Train, or go on training; the record keeps what the run was expected to need."""
    from finetune_assets.models.planning.hardware import this_machine

    with set_aside_garbage():
        from finetune_assets.models.runs.train import train
        from finetune_assets.models.training.request import Request

    checkpointing, plan = job.config.pop("checkpointing"), job.config.pop("plan")
    training = Training.model_validate(job.config)
    if training.arguments:  # else nobody has to wait for trl
        from finetune_assets.models.training.passthrough import require_valid

        training.arguments = require_valid(training.arguments, job.where)
    request = Request(
        base=job.folder("base_models"),
        training_set=job.folder("training_sets"),
        out=out,
        fingerprint=job.manifest.fingerprint,
        training=training,
        checkpointing=checkpointing,
        in_order=not job.input("training_sets").record(TrainingSetRecord).shuffle,
    )
    with report.tracking(training.model_dump(mode="json")):
        found = train(request, this_machine(), report)
    return AdapterRecord.model_validate({**found, "plan": plan} if plan else found)


def merged_models(job: Job, out: Path, report: Reporter) -> MergedRecord:
    """Merge, and compare the logits of a few real prompts."""
    from finetune_assets.models.bases.weights import stored_dtype
    from finetune_assets.models.merging.merge import merge, parity
    from finetune_assets.models.tokenization.contexts import Contexts

    base, adapter = job.folder("base_models"), job.folder("adapters")
    found = merge(base, adapter, out)
    report.log(f"merged {found['merged_layers']} adapted layers; comparing logits")
    contexts = Contexts.open(job.folder("training_sets"), "validation")
    prompts = [c.input_ids[:256].tolist() for c in contexts[: job.config["parity_prompts"]]]
    found |= parity(base, adapter, out, prompts)
    return MergedRecord.model_validate({**found, "stored_dtype": stored_dtype(out)})


def evaluation_reports(job: Job, out: Path, report: Reporter) -> EvaluationRecord:
    """Evaluate base, tuned and champion, and keep the report where MLflow's users look."""
    from finetune_assets.evaluation.evaluate import evaluate

    models = {"base": job.folder("base_models"), "tuned": job.folder("merged_models")}
    if "champion" in job.inputs:
        models["champion"] = job.folder("champion")
    record = evaluate(
        models,
        job.folder("test_splits") / "rows.parquet",
        out,
        dataset=job.manifest.dataset,
        base_name=job.config["base_name"],
        adapter=job.input("adapters").fingerprint,
        config=job.config["evaluation"],
        primary_metric=job.config["primary_metric"],
        progress=report.log,
        metrics=report.metrics,
    )
    report.file(out / "report.html")
    return record


def registered_models(job: Job, out: Path, report: Reporter) -> RegisteredRecord:
    """Register the merged model, and decide whether it becomes the champion."""
    from finetune_assets.registry.register import register

    return register(job, out, report.log)


TASKS: dict[str, Callable[[Job, Path, Reporter], Record]] = {
    "base_models": base_models,
    "training_sets": training_sets,
    "adapters": adapters,
    "merged_models": merged_models,
    "evaluation_reports": evaluation_reports,
    "registered_models": registered_models,
}


def main() -> None:
    """Make the artifact of the task named on the command line."""
    parent = int(os.environ.get(PARENT, os.getppid()))
    end_with_parent(signal.SIGTERM, parent, "run worker")
    signal.signal(signal.SIGTERM, _leave)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    task, started = TASKS[sys.argv[1]], time.monotonic()
    with open_dagster_pipes() as pipes:
        job = Job.model_validate(pipes.extras)
        report = Reporter(pipes, job.manifest.mlflow_run_id)
        try:
            with artifacts.writing(job.manifest) as out:
                record = task(job, out, report).model_copy(update={"peak_rss_gb": peak_rss_gb()})
                job.manifest.statistics = record.model_dump(mode="json", exclude_unset=True)
            if task is adapters:
                checkpoints.remove(job.manifest.fingerprint)
        except UserError as error:
            pipes.report_custom_message({"error": vars(error)})
            sys.exit(1)
        report.log(f"{sys.argv[1]} published in {time.monotonic() - started:.1f} s")


def peak_rss_gb() -> float:
    """Return the largest resident memory of this process so far, in GB; Linux counts in KiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
