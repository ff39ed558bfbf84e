"""A deployment's own launcher makes every asset, and what is there starts nothing."""

import subprocess
import sys
import uuid
from pathlib import Path

import dagster as dg
import pytest

from finetune_assets.definitions import define
from finetune_assets.launch.launcher import WORKER, Launcher
from finetune_assets.launch.process_group import raise_reported
from finetune_assets.models.records import AdapterRecord, PlanRecord
from finetune_assets.storage import artifacts
from finetune_assets.storage.job import Job

WORKERS = [
    "base_models",
    "training_sets",
    "adapters",
    "merged_models",
    "evaluation_reports",
    "registered_models",
]

AGAIN = """
import sys
from finetune_assets.models.planning import hardware

def refuse():
    raise AssertionError("the machine was asked what it has")

hardware.probe = refuse
from finetune_assets.commands.run import execute

assert execute("tiny", sys.argv[1], force=False)
print("heavy", {"torch", "transformers", "trl", "peft"} & set(sys.modules))
"""
"""One more run, in a process of its own."""


class SubprocessLauncher(Launcher):
    """Starts workers by Dagster's own Pipes client, and notes which."""

    notes: str
    """File that gets a line for each worker."""

    def launch(self, context: dg.AssetExecutionContext, asset: str, job: Job) -> None:
        with Path(self.notes).open("a") as file:
            file.write(f"{asset}\n")
        done = dg.PipesSubprocessClient().run(
            context=context,
            command=[sys.executable, "-m", WORKER, asset],
            extras=job.model_dump(mode="json"),
        )
        raise_reported(done.get_custom_messages())


def shown(instance: dg.DagsterInstance, asset: str) -> dict[str, dg.MetadataValue]:
    """Metadata of the newest materialization of an asset."""
    (record,) = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
    assert record.asset_materialization is not None
    return dict(record.asset_materialization.metadata)


def estimated(instance: dg.DagsterInstance) -> PlanRecord:
    """What the newest adapter's run was expected to need, as its manifest keeps it."""
    manifest = artifacts.read(str(shown(instance, "adapters")["manifest"].value))
    plan = manifest.record(AdapterRecord).plan
    assert plan is not None
    return plan


def fits_the_machine(instance: dg.DagsterInstance, run_id: str) -> dg.AssetCheckEvaluation:
    """What the check of this name has found in a run."""
    kinds = {dg.DagsterEventType.ASSET_CHECK_EVALUATION}
    records = instance.get_records_for_run(run_id, of_type=kinds).records
    events = [record.event_log_entry.dagster_event for record in records]
    found = [event.asset_check_evaluation_data for event in events if event]
    (check,) = [each for each in found if each.check_name == "fits_the_machine"]
    return check


def test_another_launcher_makes_every_asset_and_reuse_starts_nothing(
    project: Path, instance: dg.DagsterInstance
) -> None:
    path, notes = project / "catalog" / "tiny.yaml", project / "launched.txt"
    path.write_text(path.read_text().replace("num_train_epochs: 4", "num_train_epochs: 1"))
    job = define(launcher=SubprocessLauncher(notes=str(notes))).resolve_job_def("finetune")
    first = job.execute_in_process(instance=instance, partition_key="tiny")
    assert sorted(notes.read_text().split()) == sorted(WORKERS)
    check = fits_the_machine(instance, first.run_id)
    assert check.passed
    assert "training needs" in (check.description or "")
    plan = estimated(instance)
    table = shown(instance, "adapters")["estimate_and_actual"].value
    rows = [row.data for row in table.records]  # type: ignore[union-attr]
    assert rows[0]["estimated"] == pytest.approx(plan.needed_bytes / 1e9, rel=1e-3)

    run_id = str(uuid.uuid4())
    command = [sys.executable, "-c", AGAIN, run_id]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "heavy set()" in done.stdout
    assert all(shown(instance, asset)["reused"].value for asset in WORKERS)
    check = fits_the_machine(instance, run_id)
    assert check.passed
    assert "trained already" in (check.description or "")
    assert shown(instance, "training_sets")["estimate"].value == plan.model_dump()
    assert estimated(instance) == plan
