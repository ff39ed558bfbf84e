"""The one Definitions object of the code location."""

import dagster as dg

from finetune_assets.defs import automation, data_assets, model_assets

defs = dg.Definitions(
    assets=[
        data_assets.raw_datasets,
        data_assets.prompt_corpora,
        data_assets.splits,
        model_assets.base_models,
        model_assets.training_sets,
        model_assets.adapters,
        model_assets.merged_models,
        model_assets.evaluation_reports,
        model_assets.registered_models,
    ],
    jobs=[automation.finetune_job],
    sensors=[automation.catalog_partitions, automation.changed_sources],
    schedules=[automation.declared_schedules],
    # Heavy work has processes of its own; a process per step besides would only cost start-ups.
    executor=dg.in_process_executor,
)
