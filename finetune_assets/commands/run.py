"""`python -m finetune_assets.commands.run NAME RUN_ID`: one run of the whole graph in this process.

The command line starts it and follows the run through Dagster's event log, as the UI does.
"""

import signal
import sys

import dagster as dg

from finetune_assets import settings
from finetune_assets.defs.partitions import datasets
from finetune_assets.processes import identity as processes

PROCESS_TAG = "finetune/process"
"""Tag with the process of a run that no daemon watches, so that the next can tell it is gone."""


def execute(name: str, run_id: str, force: bool, backfill: str | None = None) -> bool:
    """Materialize every asset of a dataset; return whether the run succeeded."""
    from finetune_assets.definitions import defs

    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(str(datasets.name), [name])
        job = defs.resolve_job_def("finetune")
        ops = [node.name for node in job.nodes]
        tags = {PROCESS_TAG: processes.here()} | (
            {"dagster/backfill": backfill} if backfill else {}
        )
        result = job.execute_in_process(
            instance=instance,
            partition_key=name,
            run_id=run_id,
            raise_on_error=False,
            tags=tags,
            run_config={"ops": {op: {"config": {"force": force}} for op in ops}},
        )
        return result.success


def close_abandoned(instance: dg.DagsterInstance) -> None:
    """Fail the runs that a killed command line of this host left unfinished."""
    open_states = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    for run in instance.get_runs(dg.RunsFilter(statuses=open_states)):
        if processes.is_gone_from_here(run.tags.get(PROCESS_TAG, "")):
            instance.report_run_failed(run, "The process of this run was killed.")
    _free_slots(instance)


def _free_slots(instance: dg.DagsterInstance) -> None:
    """Give back what runs that are over hold of the pools, or the next one waits for ever.

    The daemon does so too, where one runs.
    """
    slots = instance.event_log_storage
    held = slots.get_concurrency_run_ids() if slots.supports_global_concurrency_limits else ()
    for run_id in held:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            slots.free_concurrency_slots_for_run(run_id)


def main() -> None:
    """Execute the run that the command line names, as a process of its own."""
    settings.ensure_dagster_home()
    # A TERM ends the run as Ctrl-C does: the worker stops, the run becomes CANCELED.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    name, run_id, *options = sys.argv[1:]
    backfill = next((o.partition("=")[2] for o in options if o.startswith("--backfill=")), None)
    sys.exit(0 if execute(name, run_id, "--force" in options, backfill) else 1)


if __name__ == "__main__":
    main()
