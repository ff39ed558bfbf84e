"""Project folders: written, made the ones that settings name, run once, and restored."""

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_assets import settings
from finetune_assets.registry import tracking
from finetune_assets_tests.tiny import RECIPE, write_rows

FIRST_RUN = "first_run.txt"
"""File of a project with what the command line printed of its first run."""


def write_project(folder: Path, base: Path) -> None:
    """Write a catalog with the dataset `tiny` and its rows."""
    (folder / "catalog").mkdir(parents=True)
    write_rows(folder / "catalog" / "rows.jsonl")
    (folder / "catalog" / "tiny.yaml").write_text(RECIPE.format(base=base))


@contextmanager
def inside(folder: Path, **variables: str) -> Iterator[None]:
    """Let settings name the stores of a project while the block runs.

    Args:
        variables: environment variables that name other places than those below the folder.
    """
    places = {
        settings.CATALOG_VARIABLE: str(folder / "catalog"),
        settings.STORAGE_VARIABLE: str(folder / "storage"),
        settings.DAGSTER_VARIABLE: str(folder / "dagster"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(settings.MLFLOW_VARIABLE, raising=False)
        for name, value in {**places, **variables}.items():
            patch.setenv(name, value)
        tracking.client.cache_clear()
        settings.ensure_dagster_home()
        yield
        tracking.client.cache_clear()


def run_command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `finetune` in a process of its own, to its end."""
    command = [sys.executable, "-m", "finetune_assets.commands.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def run_first(folder: Path, kept: Path) -> None:
    """Run dataset `tiny` of the current project, and keep a copy of what that leaves.

    Args:
        folder: the project.
        kept: the copy, in which `FIRST_RUN` is what was printed.
    """
    done = run_command_line("run", "tiny")
    (folder / FIRST_RUN).write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(folder, kept)


@contextmanager
def restored(folder: Path, kept: Path, **variables: str) -> Iterator[None]:
    """Make a project what it was after its first run, and use it while the block runs.

    It lies where it lay: what is made of a file is reused only for a file of the same path.
    """
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    # MLflow keeps connections, so that no database may take the place of another one.
    database = folder / "storage" / "mlflow.db"
    database = database.rename(database.with_stem(f"mlflow-{uuid.uuid4().hex}"))
    with inside(folder, **{settings.MLFLOW_VARIABLE: f"sqlite:///{database}", **variables}):
        yield


def change_recipe(folder: Path, old: str, new: str) -> None:
    """Replace a part of the recipe of dataset `tiny`, which must be there."""
    path = folder / "catalog" / "tiny.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
