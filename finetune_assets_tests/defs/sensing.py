"""Ticks of the sensor that looks for changed sources."""

import dagster as dg

from finetune_assets.defs.automation import changed_sources


def tick(
    instance: dg.DagsterInstance, cursor: str | None
) -> tuple[dg.SensorResult | dg.SkipReason, str]:
    """Return what the sensor answers, and the cursor of its next tick."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    result = changed_sources(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    new = result.cursor if isinstance(result, dg.SensorResult) else context.cursor
    assert new
    return result, new


def keys(result: dg.SensorResult | dg.SkipReason) -> list[str]:
    """Return the keys of the runs that an answer asks for."""
    assert isinstance(result, dg.SensorResult), result
    return [str(request.run_key) for request in result.run_requests or []]
