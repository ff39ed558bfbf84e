"""What a user reads when a server refuses or misses something."""

from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest

from finetune_assets.data.sources import files, sources
from finetune_assets.definitions import RESOURCES
from finetune_assets.defs.data_assets import raw_datasets
from finetune_assets.errors import UserError
from finetune_assets_tests.defs.sensing import tick
from finetune_assets_tests.stores.bucket import Bucket, forget_connections, rows
from finetune_assets_tests.stores.leaks import SECRETS, holding, written
from finetune_assets_tests.stores.postgres import PASSWORD
from finetune_assets_tests.stores.s3 import S3
from finetune_assets_tests.tiny import RECIPE_SOURCES


@pytest.fixture(scope="module")
def made_other(s3: S3) -> Bucket:
    return Bucket(s3, "other")


@pytest.fixture
def other(made_other: Bucket) -> Bucket:
    """A bucket with one object, a.jsonl."""
    made_other.restore({"other/a.jsonl": rows("first").encode()})
    forget_connections()
    return made_other


def failure(instance: dg.DagsterInstance) -> str:
    """What a user reads where `raw_datasets` fails; a stack of frames would be another error."""
    done = dg.materialize(
        [raw_datasets],
        instance=instance,
        partition_key="tiny",
        resources=RESOURCES,
        raise_on_error=False,
    )
    (event,) = done.get_step_failure_events()
    data = event.step_failure_data
    assert data.user_failure_data is not None, data.error
    return str(data.user_failure_data.description)


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
