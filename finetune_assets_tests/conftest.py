"""Real stores in temporary folders, and the tiny base that most tests train."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from finetune_assets import settings
from finetune_assets_tests.stores import postgres_server, s3_server  # noqa: F401
from finetune_assets_tests.tiny import RECIPE, make_base, write_rows

# Threads that spin while they wait make a step twenty times slower as soon as
# anything else runs, as tests do. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny random Llama."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project folder of its own: a catalog with dataset `tiny`, rows, and empty stores."""
    from finetune_assets.registry import tracking

    catalog = tmp_path / "catalog"
    catalog.mkdir()
    write_rows(catalog / "rows.jsonl")
    (catalog / "tiny.yaml").write_text(RECIPE.format(base=tiny_base))
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(catalog))
    monkeypatch.setenv(settings.STORAGE_VARIABLE, str(tmp_path / "storage"))
    monkeypatch.setenv(settings.DAGSTER_VARIABLE, str(tmp_path / "dagster"))
    monkeypatch.delenv(settings.MLFLOW_VARIABLE, raising=False)
    tracking.client.cache_clear()
    settings.ensure_dagster_home()
    yield tmp_path
    tracking.client.cache_clear()


@pytest.fixture
def instance(project: Path) -> Iterator[dg.DagsterInstance]:
    """The project's Dagster instance, with its dataset as a partition."""
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("datasets", ["tiny"])
        yield instance
