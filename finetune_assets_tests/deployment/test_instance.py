"""Dagster's own loaders accept the instance, workspace and Dagster+ files."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, Definitions
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import PoolGranularity, dagster_instance_config
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
)
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._serdes import ConfigurableClassData
from dagster_cloud_cli.config.models import load_dagster_cloud_yaml
from ruamel.yaml import YAML

from finetune_assets.defs.partitions import GPU_TAGS

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "finetune_assets" / "dagster.yaml"
DOCKER = ROOT / "docker" / "dagster.yaml"
OWN = {"storage", "compute_logs"}
"""Sections that say where an instance keeps things; every other one is policy."""


def policy(path: Path) -> dict[str, Any]:
    return {k: v for k, v in YAML(typ="safe").load(path.read_text()).items() if k not in OWN}


@pytest.fixture
def docker_environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the containers, with a password that needs quoting in a URL."""
    compose = YAML(typ="safe").load((ROOT / "docker" / "compose.yaml").read_text())
    environment = {**compose["x-environment"], "DAGSTER_DB_PASSWORD": "it's 100%@home"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


def test_local_instance_opens_with_the_policy(tmp_path: Path) -> None:
    shutil.copy(LOCAL, tmp_path / "dagster.yaml")
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.pool_granularity is PoolGranularity.OP
        assert concurrency.pool_config.default_pool_limit == 1
        queue = concurrency.run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == 4
        assert queue.tag_concurrency_limits == [
            {
                "key": "dagster/partition",
                "value": {"applyLimitPerUniqueValue": True},
                "limit": 1,
            }
        ]
        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"
        assert instance.run_monitoring_enabled
        assert not instance.telemetry_enabled


def test_a_cancel_is_given_up_only_after_the_worker_was() -> None:
    from finetune_assets.launch.process_group import GRACE_SECONDS

    assert policy(LOCAL)["run_monitoring"]["cancel_timeout_seconds"] > GRACE_SECONDS


def test_both_instances_have_one_policy() -> None:
    assert policy(DOCKER) == policy(LOCAL)


def test_docker_instance_is_valid_without_connecting(
    tmp_path: Path, docker_environment: dict[str, str]
) -> None:
    import sqlalchemy
    from dagster_postgres.utils import pg_url_from_config

    shutil.copy(DOCKER, tmp_path / "dagster.yaml")
    dagster_instance_config(str(tmp_path))
    reference = InstanceRef.from_dir(str(tmp_path))
    configured = {
        value.class_name: _validated(value)
        for value in reference
        if isinstance(value, ConfigurableClassData)
    }
    assert configured["S3ComputeLogManager"]["bucket"] == docker_environment["S3_BUCKET"]
    url = sqlalchemy.make_url(pg_url_from_config(configured["DagsterPostgresStorage"]))
    # The engine connects at its first query; building it imports the driver.
    assert sqlalchemy.create_engine(url).driver == "psycopg2"
    assert (url.host, url.database) == ("postgres", "dagster")
    assert url.password == docker_environment["DAGSTER_DB_PASSWORD"]


def _validated(data: ConfigurableClassData) -> dict[str, Any]:
    """The configuration that the class would be made with, environment variables resolved."""
    configurable: Any = getattr(importlib.import_module(data.module_name), data.class_name)
    result = process_config(resolve_to_config_type(configurable.config_type()), data.config_dict)
    assert result.success, result.errors
    return dict(result.value or {})


def test_workspace_loads_the_definitions() -> None:
    (origin,) = location_origins_from_yaml_paths([str(ROOT / "workspace.yaml")])
    assert isinstance(origin, ManagedGrpcPythonEnvCodeLocationOrigin)
    assert origin.location_name == "finetune_assets"
    target = origin.loadable_target_origin
    assert target.module_name
    assert target.attribute
    module = importlib.import_module(target.module_name)
    assert isinstance(getattr(module, target.attribute), Definitions)


def test_docker_workspace_asks_the_code_server() -> None:
    path = ROOT / "docker" / "workspace.yaml"
    (origin,) = location_origins_from_yaml_paths([str(path)])
    assert isinstance(origin, GrpcServerCodeLocationOrigin)
    assert (origin.host, origin.port) == ("code-server", 4000)
    assert origin.location_name == "finetune_assets"


def test_dagster_plus_location_is_valid_and_has_room_for_gpu_steps() -> None:
    (location,) = load_dagster_cloud_yaml((ROOT / "dagster_cloud.yaml").read_text()).locations
    assert location.code_source
    assert location.code_source.module_name
    assert location.attribute
    module = importlib.import_module(location.code_source.module_name)
    assert isinstance(getattr(module, location.attribute), Definitions)
    assert location.build
    assert location.build.directory
    assert (ROOT / location.build.directory / "pyproject.toml").exists()
    assert location.container_context
    run = location.container_context["k8s"]["run_k8s_config"]
    limits = run["container_config"]["resources"]["limits"]
    asked = GPU_TAGS["dagster-k8s/config"]["container_config"]["resources"]["limits"]
    assert {name: limits[name] for name in asked} == asked
    volumes = {volume["name"] for volume in run["pod_spec_config"]["volumes"]}
    assert {mount["name"] for mount in run["container_config"]["volume_mounts"]} == volumes
