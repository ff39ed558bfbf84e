"""`python -m finetune_assets.launch.worker TASK`: the one entry point of every worker process.

Started through Dagster Pipes with a Job as extras; makes one artifact and publishes it.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagster_pipes import open_dagster_pipes

from finetune_assets.errors import UserError
from finetune_assets.launch.reporter import Reporter
from finetune_assets.storage import artifacts as artifacts
from finetune_assets.storage import checkpoints
from finetune_assets.storage.fingerprint import digest
from finetune_assets.storage.job import PARENT, Job


def base_models(job: Job, out: Path, report: Reporter) -> dict[str, Any]:
    from finetune_assets.models.bases.prepare import prepare

    template = job.config.get("chat_template")
    statistics = prepare(job.config["model"], Path(template) if template else None, out, job.where)
    names = sorted(p for p in out.iterdir() if p.is_file())
    from finetune_assets.storage.fingerprint import file_digest

    job.manifest.data_version = digest({p.name: file_digest(p) for p in names})
    return statistics


def training_sets(job: Job, out: Path, report: Reporter) -> dict[str, Any]:
    # Tokenizers need no torch, whose import takes 3 s and 280 MB; None forbids it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # of which one is that there is no torch
    from finetune_assets.catalog.training import Training
    from finetune_assets.models.tokenization.training_set import build

    splits = {
        name: job.folder(f"{name}_splits") / "rows.parquet" for name in ("train", "validation")
    }
    return build(
        job.folder("base_models"),
        splits,
        out,
        where=job.where,
        training=Training.model_validate(job.config),
        progress=report.log,
    )


def adapters(job: Job, out: Path, report: Reporter) -> dict[str, Any]:
    from finetune_assets.catalog.training import Training
    from finetune_assets.models.planning.hardware import this_machine
    from finetune_assets.models.runs.train import train
    from finetune_assets.models.training.request import Request

    checkpointing = job.config.pop("checkpointing")
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
        in_order=not job.input("training_sets").statistics.get("shuffle", True),
    )
    with report.tracking(training.model_dump(mode="json")):
        return train(request, this_machine(), report)


def merged_models(job: Job, out: Path, report: Reporter) -> dict[str, Any]:
    from finetune_assets.models.merging.merge import merge, parity, stored_dtype
    from finetune_assets.models.tokenization.contexts import Contexts

    base, adapter = job.folder("base_models"), job.folder("adapters")
    statistics = merge(base, adapter, out)
    report.log(f"merged {statistics['merged_layers']} adapted layers; comparing logits")
    contexts = Contexts.open(job.folder("training_sets"), "validation")
    prompts = [c.input_ids[:256].tolist() for c in contexts[: job.config["parity_prompts"]]]
    statistics |= parity(base, adapter, out, prompts)
    return statistics | {"stored_dtype": stored_dtype(out)}


def evaluation_reports(job: Job, out: Path, report: Reporter) -> dict[str, Any]:
    from finetune_assets.evaluation.evaluate import evaluate

    models = {"base": job.folder("base_models"), "tuned": job.folder("merged_models")}
    if "champion" in job.inputs:
        models["champion"] = job.folder("champion")
    statistics = evaluate(
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
    return statistics


def registered_models(job: Job, out: Path, report: Reporter) -> dict[str, Any]:
    from finetune_assets.registry.register import register

    return register(job, out, report.log)


TASKS: dict[str, Callable[[Job, Path, Reporter], dict[str, Any]]] = {
    "base_models": base_models,
    "training_sets": training_sets,
    "adapters": adapters,
    "merged_models": merged_models,
    "evaluation_reports": evaluation_reports,
    "registered_models": registered_models,
}


def main() -> None:
    """Make the artifact of the task named on the command line."""
    _end_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    task, started = TASKS[sys.argv[1]], time.monotonic()
    with open_dagster_pipes() as pipes:
        job = Job.model_validate(pipes.extras)
        report = Reporter(pipes, job.manifest.mlflow_run_id)
        try:
            with artifacts.writing(job.manifest) as out:
                job.manifest.statistics = task(job, out, report)
                job.manifest.statistics["peak_rss_gb"] = peak_rss_gb()
            if task is adapters:
                checkpoints.remove(job.manifest.fingerprint)
        except UserError as error:
            pipes.report_custom_message(
                {"error": {"where": error.where, "cause": error.cause, "remedy": error.remedy}}
            )
            sys.exit(1)
        report.log(f"{sys.argv[1]} published in {time.monotonic() - started:.1f} s")


def peak_rss_gb() -> float:
    """Largest resident memory of this process so far, in GB (ru_maxrss is in KiB on Linux)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    """Ask Linux for a TERM when the run worker dies, so that a kill -9 of it orphans nothing."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            sys.exit("the run worker is gone")  # before this process could ask


if __name__ == "__main__":
    main()
