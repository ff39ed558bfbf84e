"""Sensors, schedule and job: partitions follow the catalog, runs follow the data."""

import json
from datetime import datetime

import dagster as dg

from finetune_assets.catalog.load import Entry, load, names
from finetune_assets.data.sources.spool_folder import spool_folder
from finetune_assets.defs.partitions import datasets
from finetune_assets.defs.resources import newest
from finetune_assets.errors import UserError

finetune_job = dg.define_asset_job(
    "finetune",
    selection=dg.AssetSelection.all(),
    partitions_def=datasets,
    description="Everything of one dataset, from its files to the registry.",
)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the partitions equal to the catalog's files.",
)
def catalog_partitions(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Add partitions for new dataset files, and remove those whose file is gone."""
    known, declared = set(context.instance.get_dynamic_partitions("datasets")), set(names())
    if known == declared:
        return dg.SkipReason(f"{len(known)} datasets, no change")
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if declared - known:
        requests.append(datasets.build_add_request(sorted(declared - known)))
    if known - declared:
        requests.append(datasets.build_delete_request(sorted(known - declared)))
    return dg.SensorResult(dynamic_partitions_requests=requests)


@dg.sensor(
    job=finetune_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Retrains a dataset when the content of its source files changes.",
)
def changed_sources(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Request runs for datasets whose sources differ from what was last materialized.

    The cursor keeps what can be seen without reading rows (size and time of change of files, row
    counts of queries), so that content is hashed only when that moved. The run key holds the new
    content and the materialization that it follows, so a change that is taken back and made again
    starts a run again.
    """
    from finetune_assets.data.sources.sources import glance

    seen: dict[str, dict[str, object]] = json.loads(context.cursor or "{}")
    requests, problems = [], []
    for name in context.instance.get_dynamic_partitions("datasets"):
        try:
            entry = load(name)
            glimpse = glance(entry)
            if seen.get(name, {}).get("glance") != glimpse:
                seen[name] = {"glance": glimpse, "content": _content(entry)}
        except UserError as error:
            problems.append(str(error))
            continue
        latest, content = newest(context.instance, "raw_datasets", name), seen[name]["content"]
        if latest and (latest[0].tags or {}).get("dagster/data_version", "") != content:
            key = f"{name}:{content}:after-{latest[1]}"
            requests.append(dg.RunRequest(run_key=key, partition_key=name))
    for problem in problems:
        context.log.warning(problem)
    cursor = json.dumps(seen)
    if not requests:
        context.update_cursor(cursor)
        return dg.SkipReason("; ".join(problems) or "no source changed")
    return dg.SensorResult(run_requests=requests, cursor=cursor)


@dg.schedule(
    job=finetune_job,
    cron_schedule="0 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Runs the datasets whose file says `schedule: daily`, `weekly` or `monthly`.",
)
def declared_schedules(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    """Request runs for the datasets that are due on the day of the tick."""
    tick = context.scheduled_execution_time
    return [
        dg.RunRequest(run_key=f"{name}:{tick:%Y-%m-%d}", partition_key=name)
        for name in context.instance.get_dynamic_partitions("datasets")
        if is_due(load(name).config.schedule, tick)
    ]


def is_due(schedule: str | None, tick: datetime) -> bool:
    """Return whether a schedule's word means this day."""
    return (
        schedule == "daily"
        or (schedule == "weekly" and tick.weekday() == 0)
        or (schedule == "monthly" and tick.day == 1)
    )


def _content(entry: Entry) -> str:
    """Return the data version that `raw_datasets` would have now."""
    from finetune_assets.data.sources.sources import content_version, pin

    with spool_folder() as scratch:
        return content_version(pin(entry, scratch), entry.config.sources)
