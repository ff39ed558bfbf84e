"""How the tests run beside each other, their real stores, and the tiny base that most train."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import hypothesis
import pytest

from finetune_assets import settings
from finetune_assets.registry import tracking
from finetune_assets_tests.projects import inside, write_project
from finetune_assets_tests.stores import postgres_server, s3_server  # noqa: F401
from finetune_assets_tests.tiny import make_base

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SERVERS = {"postgres", "s3"}
"""Fixtures that start a server."""

# Threads that spin while they wait make a step twenty times slower as soon as
# anything else runs, as tests do. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers fill the cores. Training asks for all threads by itself, as it does for users.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that needs a server; they share a worker, so that each server starts once."""
    if SERVERS & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.server)
        item.add_marker(pytest.mark.xdist_group("server"))


@pytest.fixture(autouse=True)
def tracking_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the MLflow store of a test after it; MLflow writes it to the environment."""
    # Only what has been set or removed before is put back.
    monkeypatch.setenv(settings.MLFLOW_VARIABLE, "")
    monkeypatch.delenv(settings.MLFLOW_VARIABLE)
    tracking.client.cache_clear()
    yield
    tracking.client.cache_clear()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny random Llama."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Iterator[Path]:
    """A project folder of its own: a catalog with dataset `tiny`, rows, and empty stores."""
    write_project(tmp_path, tiny_base)
    with inside(tmp_path):
        yield tmp_path


@pytest.fixture
def instance(project: Path) -> Iterator[dg.DagsterInstance]:
    """The project's Dagster instance, with its dataset as a partition."""
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("datasets", ["tiny"])
        yield instance
