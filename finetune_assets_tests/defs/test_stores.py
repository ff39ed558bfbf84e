"""The whole graph on real servers: artifacts, catalog and files on S3, rows in PostgreSQL.

Each test begins with a project whose dataset has been run once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import polars as pl
import psycopg2
import pytest

from finetune_assets import settings
from finetune_assets.definitions import RESOURCES
from finetune_assets.defs.data_assets import prompt_corpora, raw_datasets, splits
from finetune_assets.defs.model_assets import base_models
from finetune_assets.registry import tracking
from finetune_assets.storage import artifacts
from finetune_assets_tests.defs.graph import ASSETS, made, manifest, materializations, run_again
from finetune_assets_tests.defs.sensing import keys, tick
from finetune_assets_tests.projects import FIRST_RUN, inside, restored, run_first
from finetune_assets_tests.stores.bucket import Bucket, forget_connections, rows
from finetune_assets_tests.stores.leaks import SECRETS, holding, written
from finetune_assets_tests.stores.postgres import PASSWORD
from finetune_assets_tests.stores.s3 import S3
from finetune_assets_tests.tiny import RECIPE, RECIPE_SOURCES

QUERY = "SELECT 'what is row ' || i || '?' AS prompt, 'the answer is ' || i % 7 AS completion"
SOURCES = """\
sources:
  - path: {bucket}/rows/*.jsonl.gz
  - query: {query} FROM rows ORDER BY i
    connection: {connection}
"""


@dataclass(frozen=True)
class Finished:
    """A project on the two servers, in which `tiny` has been run from the command line."""

    folder: Path
    """The place on this disk from which it runs."""
    kept: Path
    """A copy of what the first run has left there."""
    bucket: Bucket
    objects: dict[str, bytes]
    """What the first run has left in the bucket."""

    @property
    def places(self) -> dict[str, str]:
        """Environment variables that say where the project is."""
        return {
            "ROWS_PASSWORD": quote(PASSWORD, safe=""),
            settings.CATALOG_VARIABLE: f"{self.bucket.uri}/catalog",
            settings.STORAGE_VARIABLE: f"{self.bucket.uri}/artifacts",
        }


@pytest.fixture(scope="module")
def first(
    s3: S3, postgres: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """The project, whose table is gone at the end."""
    root = tmp_path_factory.mktemp("stores")
    bucket = Bucket(s3, "finetune")
    bucket.put("rows/a.jsonl.gz", rows("first"))
    bucket.put("rows/b.jsonl.gz", rows("second"))
    execute(postgres, "CREATE TABLE rows AS SELECT i FROM generate_series(1, 20) AS i")
    connection = postgres.replace(quote(PASSWORD, safe=""), "${ROWS_PASSWORD}")
    declared = SOURCES.format(bucket=bucket.uri, query=QUERY, connection=connection)
    recipe = RECIPE.format(base=tiny_base).replace(RECIPE_SOURCES, declared)
    bucket.put("catalog/tiny.yaml", recipe.replace("num_train_epochs: 4", "num_train_epochs: 1"))
    made = Finished(root / "project", root / "kept", bucket, {})
    made.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, inside(made.folder, **made.places):
        patch.chdir(made.folder)
        run_first(made.folder, made.kept)
    made.objects.update(bucket.contents())
    yield made
    execute(postgres, "DROP TABLE rows")


@pytest.fixture
def bucket(first: Finished, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket of the project, which is as its first run has left it."""
    first.bucket.restore(first.objects)
    forget_connections()
    with restored(first.folder, first.kept, **first.places):
        monkeypatch.chdir(first.folder)
        yield first.bucket


@pytest.fixture
def one_more_row(postgres: str, bucket: Bucket) -> Iterator[Callable[[bool], None]]:
    """Insert a row into the project's table, or take it away again."""

    def change(there: bool) -> None:
        execute(postgres, "DELETE FROM rows WHERE i = 21")
        if there:
            execute(postgres, "INSERT INTO rows VALUES (21)")

    yield change
    change(False)


@pytest.fixture
def history(bucket: Bucket) -> Iterator[dg.DagsterInstance]:
    """The instance that the project's runs are recorded in."""
    with dg.DagsterInstance.get() as instance:
        yield instance


def execute(postgres: str, statement: str) -> None:
    connection = psycopg2.connect(postgres)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


def test_everything_is_made_and_lies_on_s3(bucket: Bucket) -> None:
    shown = materializations()
    assert made(shown) == ASSETS
    for asset, metadata in shown.items():
        assert str(metadata["manifest"]).startswith(f"{bucket.uri}/artifacts/{asset}/tiny/")
    raw = manifest("raw_datasets").statistics
    assert raw["rows"] == 60
    first, second, query = (file["file"] for file in raw["files"])
    assert [first, second] == [f"{bucket.uri}/rows/{name}.jsonl.gz" for name in "ab"]
    assert query.startswith("query on postgresql://127.0.0.1:")
    assert not [name for name in ASSETS if Path("storage", name).exists()], "made on this disk"
    version = tracking.client().get_model_version_by_alias("tiny", "champion")
    assert bucket.contents(f"artifacts/mlflow/tiny/models/{version.source.rpartition('/')[2]}")


def test_the_password_is_nowhere(first: Finished, bucket: Bucket) -> None:
    kept = written(first.kept) | bucket.contents("artifacts")
    address = b"query on postgresql://127.0.0.1:"
    shown = [path for path, content in kept.items() if address in content]
    for place in ("manifest.json", "mlflow.db", "dagster/history/runs/"):
        assert [path for path in shown if place in path], f"{place} is not searched"
    assert [path for path in kept if path.endswith((FIRST_RUN, ".err"))]
    assert holding(kept, SECRETS) == []
    named = pl.read_parquet(artifacts.local_copy(manifest("raw_datasets")) / "rows.parquet")
    assert not [name for name in named["source"].unique() if quote(PASSWORD, safe="") in name]


def test_a_second_run_reuses_everything(bucket: Bucket) -> None:
    assert made(run_again()) == set()


def test_the_sensor_sees_a_new_row_of_the_table(
    one_more_row: Callable[[bool], None], history: dg.DagsterInstance
) -> None:
    result, cursor = tick(history, None)
    assert isinstance(result, dg.SkipReason)
    result, cursor = tick(history, cursor)
    assert isinstance(result, dg.SkipReason)
    one_more_row(True)
    result, cursor = tick(history, cursor)
    assert [key.split(":")[0] for key in keys(result)] == ["tiny"]
    one_more_row(False)
    assert isinstance(tick(history, cursor)[0], dg.SkipReason)


def test_the_sensor_sees_objects_replaced_added_and_removed(
    bucket: Bucket, history: dg.DagsterInstance
) -> None:
    result, cursor = tick(history, None)
    bucket.put("rows/b.jsonl.gz", rows("second"))
    result, cursor = tick(history, cursor)
    assert isinstance(result, dg.SkipReason), "the same bytes written again are no change"
    bucket.put("rows/b.jsonl.gz", rows("second", "another answer {}"))
    result, cursor = tick(history, cursor)
    replaced = keys(result)
    bucket.put("rows/b.jsonl.gz", rows("second"))
    result, cursor = tick(history, cursor)
    assert isinstance(result, dg.SkipReason)
    bucket.put("rows/c.jsonl.gz", rows("third"))
    result, cursor = tick(history, cursor)
    assert len({*replaced, *keys(result)}) == 2
    bucket.remove("rows/c.jsonl.gz")
    assert isinstance(tick(history, cursor)[0], dg.SkipReason)


def test_a_replaced_object_is_read_again_and_the_base_is_not(
    bucket: Bucket, history: dg.DagsterInstance
) -> None:
    before = manifest("raw_datasets").statistics["files"]
    bucket.put("rows/b.jsonl.gz", rows("second", "another answer {}"))
    chosen = [raw_datasets, prompt_corpora, splits, base_models]
    done = dg.materialize(chosen, instance=history, partition_key="tiny", resources=RESOURCES)
    again = {a for a, m in materializations(done.run_id).items() if not m["reused"]}
    assert {"raw_datasets", "prompt_corpora", "train_splits"} <= again
    assert "base_models" not in again
    after = manifest("raw_datasets").statistics["files"]
    assert [old["sha256"] == new["sha256"] for old, new in zip(before, after, strict=True)] == [
        True,
        False,
        True,
    ]
    result, _ = tick(history, None)
    assert isinstance(result, dg.SkipReason), "what was read is what the sensor sees"
