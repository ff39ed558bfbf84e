"""The code location: light to load, and every asset documented, owned, grouped and kinded."""

import json
import subprocess
import sys

import dagster as dg

from finetune_assets.definitions import defs
from finetune_assets.defs.partitions import GPU_POOL
from finetune_assets_tests.defs.graph import ASSETS


def test_loading_is_free_of_heavy_libraries() -> None:
    script = (
        "import json, sys, finetune_assets.definitions;"
        "heavy = {'torch', 'transformers', 'mlflow', 'peft', 'trl', 'datasets', 'polars',"
        " 'matplotlib', 'bitsandbytes'};"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stderr


def test_every_asset_says_what_it_is() -> None:
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert set(specs) == ASSETS
    for name, spec in specs.items():
        assert spec.description, name
        assert spec.owners, name
        assert spec.group_name in ("data", "models"), name
        assert spec.kinds, name
        assert spec.code_version, name
        assert isinstance(spec.partitions_def, dg.DynamicPartitionsDefinition), name
        assert spec.partitions_def.name == "datasets"


def test_gpu_steps_wait_for_the_pool_and_ask_kubernetes_for_a_gpu() -> None:
    for name in ("adapters", "merged_models", "evaluation_reports"):
        op = defs.resolve_assets_def(name).op
        assert op.pool == GPU_POOL, name
    for name in ("adapters", "evaluation_reports"):
        tags = defs.resolve_assets_def(name).op.tags
        kubernetes = tags["dagster-k8s/config"]
        kubernetes = json.loads(kubernetes) if isinstance(kubernetes, str) else kubernetes
        assert kubernetes["container_config"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_sensors_and_schedule_run_by_default() -> None:
    repository = defs.get_repository_def()
    for sensor in repository.sensor_defs:
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    for schedule in repository.schedule_defs:
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert {s.name for s in repository.sensor_defs} == {"catalog_partitions", "changed_sources"}
    dg.Definitions.validate_loadable(defs)
