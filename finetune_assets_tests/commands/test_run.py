"""What a run that was killed has left, and the next one clears up."""

from pathlib import Path

import dagster as dg
import pytest

from finetune_assets import settings
from finetune_assets.commands.run import PROCESS_TAG, close_abandoned
from finetune_assets.processes import identity as processes

POOL = "gpu"
GONE = processes.here().rpartition("-")[0] + "-1"
"""The number of this process, when another had it."""


@pytest.fixture
def instance(project: Path) -> dg.DagsterInstance:
    settings.ensure_dagster_home()
    made = dg.DagsterInstance.get()
    made.event_log_storage.set_concurrency_slots(POOL, 1)
    return made


def started(instance: dg.DagsterInstance, process: str) -> str:
    """A run that has begun and holds the only slot of the pool."""
    run = instance.create_run_for_job(
        dg.JobDefinition(name="any", graph_def=dg.GraphDefinition(name="any", node_defs=[])),
        tags={PROCESS_TAG: process},
        status=dg.DagsterRunStatus.STARTED,
    )
    claimed = instance.event_log_storage.claim_concurrency_slot(POOL, run.run_id, "adapters")
    assert claimed.is_claimed
    return run.run_id


def holders(instance: dg.DagsterInstance) -> set[str]:
    return instance.event_log_storage.get_concurrency_info(POOL).active_run_ids


def test_a_killed_run_is_failed_and_gives_its_pool_back(instance: dg.DagsterInstance) -> None:
    run_id = started(instance, GONE)
    close_abandoned(instance)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert holders(instance) == set()


def test_a_run_that_is_alive_keeps_its_pool(instance: dg.DagsterInstance) -> None:
    run_id = started(instance, processes.here())
    close_abandoned(instance)
    assert holders(instance) == {run_id}
