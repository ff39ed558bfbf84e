"""The one Definitions object of the code location."""

from collections.abc import Mapping

import dagster as dg

from finetune_assets.defs import automation, data_assets, model_assets
from finetune_assets.defs.resources import ArtifactStore, Tracking
from finetune_assets.launch.launcher import ProcessGroupLauncher

RESOURCES: Mapping[str, dg.ConfigurableResource] = {
    "launcher": ProcessGroupLauncher(),
    "store": ArtifactStore(),
    "tracking": Tracking(),
}


def define(**resources: dg.ConfigurableResource) -> dg.Definitions:
    """Return the definitions, with a deployment's own resources in place of those given by name.

    A code location whose workers run elsewhere is a module with
    `defs = define(launcher=ThatLauncher())`.
    """
    return dg.Definitions(
        assets=dg.load_assets_from_modules([data_assets, model_assets]),
        jobs=[automation.finetune_job],
        sensors=[automation.catalog_partitions, automation.changed_sources],
        schedules=[automation.declared_schedules],
        resources={**RESOURCES, **resources},
        # Heavy work has processes of its own; one per step besides would only cost start-ups.
        executor=dg.in_process_executor,
    )


defs = define()
