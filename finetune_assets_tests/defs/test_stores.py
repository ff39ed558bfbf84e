"""The whole graph on real servers: artifacts, catalog and files on S3, rows in PostgreSQL.

Each test begins with a project whose dataset has been run once.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import polars as pl
import psycopg2
import pytest

from finetune_assets import settings
from finetune_assets.data.sources import files, sources
from finetune_assets.defs.data_assets import prompt_corpora, raw_datasets, splits
from finetune_assets.defs.model_assets import base_models
from finetune_assets.errors import UserError
from finetune_assets.registry import tracking
from finetune_assets.storage import artifacts
from finetune_assets_tests.defs.graph import ASSETS, made, manifest, materializations, run_again
from finetune_assets_tests.defs.sensing import keys, tick
from finetune_assets_tests.projects import FIRST_RUN, inside, restored, run_first
from finetune_assets_tests.stores.postgres import PASSWORD
from finetune_assets_tests.stores.s3 import S3
from finetune_assets_tests.tiny import RECIPE

QUERY = "SELECT 'what is row ' || i || '?' AS prompt, 'the answer is ' || i % 7 AS completion"
SOURCES = """\
sources:
  - path: {bucket}/rows/*.jsonl.gz
  - query: {query} FROM rows ORDER BY i
    connection: {connection}
"""
RECIPE_SOURCES = "sources:\n  - path: rows.jsonl\n"
SECRETS = [text.encode() for text in (PASSWORD, quote(PASSWORD, safe=""))]


class Bucket:
    """A bucket as others see it who write to it: nothing is remembered on the way."""

    def __init__(self, server: S3, name: str) -> None:
        import s3fs

        self.uri = server.make_bucket(name)
        self._files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    def put(self, path: str, content: str) -> None:
        body = content.encode()
        if path.endswith(".gz"):
            body = gzip.compress(body, mtime=0)
        self._files.pipe_file(f"{self.uri}/{path}", body)

    def remove(self, path: str) -> None:
        self._files.rm_file(f"{self.uri}/{path}")

    def contents(self, folder: str = "") -> dict[str, bytes]:
        """Return the objects by their path, which begins with the bucket."""
        return {
            path: self._files.cat_file(path)  # pyright: ignore
            for path in self._files.find(f"{self.uri}/{folder}")
        }

    def restore(self, objects: dict[str, bytes]) -> None:
        """Make these objects, of `contents`, the only ones."""
        now = self.contents()
        for path in now.keys() - objects.keys():
            self._files.rm_file(path)
        for path, content in objects.items():
            if now.get(path) != content:
                self._files.pipe_file(path, content)


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


@pytest.fixture(scope="module")
def made_other(s3: S3) -> Bucket:
    return Bucket(s3, "other")


@pytest.fixture
def other(made_other: Bucket) -> Bucket:
    """A bucket with one object, a.jsonl."""
    made_other.restore({"other/a.jsonl": rows("first").encode()})
    forget_connections()
    return made_other


def rows(word: str, answer: str = "the answer is {}") -> str:
    return "".join(
        json.dumps({"prompt": f"what is {word} {i}?", "completion": answer.format(i % 7)}) + "\n"
        for i in range(20)
    )


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
    done = dg.materialize(chosen, instance=history, partition_key="tiny")
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


@pytest.mark.parametrize(
    ("path", "variables", "cause"),
    [
        ("s3://other/no.jsonl", {}, "s3://other/no.jsonl: no such file"),
        ("s3://other/no/*.jsonl", {}, "s3://other/no/*.jsonl: no such file"),
        ("s3://no-such-bucket/rows/", {}, "s3://no-such-bucket/rows/: no such file"),
        ("s3://other/", {"AWS_SECRET_ACCESS_KEY": "x"}, "s3://other/: access is denied"),
        ("s3://other/a.jsonl", {"AWS_ACCESS_KEY_ID": "x"}, "s3://other/a.jsonl: access is denied"),
    ],
)
def test_s3_that_cannot_be_read_is_one_error(
    other: Bucket,
    project: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    variables: dict[str, str],
    cause: str,
) -> None:
    recipe = project / "catalog" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("rows.jsonl", path))
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        forget_connections()
        try:
            said = failure(instance)
            result, _ = tick(instance, None)
        finally:
            forget_connections()
    assert said.startswith(cause)
    assert said.count("remedy:") == 1
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message == said


def test_access_that_is_lost_while_reading_is_no_damage(
    other: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        forget_connections()
        try:
            with pytest.raises(UserError, match=f"{other.uri}/a.jsonl: access is denied"):
                next(files.read_rows(f"{other.uri}/a.jsonl"))
        finally:
            forget_connections()


def test_an_object_that_was_missed_is_found_once_it_is_there(other: Bucket) -> None:
    with pytest.raises(UserError, match="no such file"):
        sources.find_files(f"{other.uri}/[x-z].jsonl", "sources[0].path")
    other.put("x.jsonl", rows("first"))
    found = sources.find_files(f"{other.uri}/[x-z].jsonl", "sources[0].path")
    assert found == [f"{other.uri}/x.jsonl"]


def test_a_wrong_password_is_one_error_that_does_not_show_it(
    postgres: str, project: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "not-the-password"
    monkeypatch.setenv("ROWS_PASSWORD", wrong)
    recipe = project / "catalog" / "tiny.yaml"
    connection = postgres.replace(quote(PASSWORD, safe=""), "${ROWS_PASSWORD}")
    source = f"sources:\n  - query: SELECT 1 AS a\n    connection: {connection}\n"
    recipe.write_text(recipe.read_text().replace(RECIPE_SOURCES, source))
    said = failure(instance)
    assert said.startswith(f"{recipe}: sources[0]: ")
    assert "password authentication failed" in said
    assert said.count("remedy:") == 1
    kept = written(project / "dagster")
    assert holding(kept, [b"password authentication failed"])
    assert holding(kept, [wrong.encode(), *SECRETS]) == []


def failure(instance: dg.DagsterInstance) -> str:
    """What a user reads where `raw_datasets` fails; a stack of frames would be another error."""
    done = dg.materialize(
        [raw_datasets], instance=instance, partition_key="tiny", raise_on_error=False
    )
    (event,) = done.get_step_failure_events()
    data = event.step_failure_data
    assert data.user_failure_data is not None, data.error
    return str(data.user_failure_data.description)


def forget_connections() -> None:
    """fsspec keeps one file system for equal arguments, whatever the environment says."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def written(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holding(files: dict[str, bytes], texts: list[bytes]) -> list[str]:
    return [path for path, content in files.items() if any(text in content for text in texts)]
