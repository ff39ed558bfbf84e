"""Where artifacts lie on S3, another machine goes on from the checkpoints that lie there too."""

import shutil
import signal
import uuid
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
from botocore.exceptions import EndpointConnectionError

from finetune_assets import settings
from finetune_assets.models.kernels.loss import supervised_nll
from finetune_assets.models.planning.hardware import this_machine
from finetune_assets.models.runs.train import train
from finetune_assets.models.training import trainer
from finetune_assets.storage import artifacts, checkpoints
from finetune_assets.storage.artifacts import Manifest
from finetune_assets.storage.checkpoints import COMPLETE
from finetune_assets_tests.models.running import (
    RANDOM,
    Cut,
    Noting,
    adapter,
    at,
    cutting,
    request,
    start,
    train_here,
)
from finetune_assets_tests.stores.s3 import S3
from finetune_assets_tests.stores.s3 import running as servers

RECIPE: dict[str, Any] = {**RANDOM, "save_total_limit": 1}


@pytest.fixture
def whole(project: Path, tiny_base: Path, data: Path) -> bytes:
    """The adapter of a run that nothing disturbs."""
    train_here(tiny_base, data, project / "whole", **RECIPE)
    return adapter(project / "whole")


@pytest.fixture
def bucket(s3: S3, project: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes) -> str:
    """The storage of a project, whose folder is the current one."""
    uri = s3.make_bucket(f"finetune-{uuid.uuid4().hex[:8]}")
    monkeypatch.setenv(settings.STORAGE_VARIABLE, uri)
    monkeypatch.chdir(project)
    return uri


def stored(uri: str) -> dict[str, set[str]]:
    """Names of files by checkpoint."""
    fs, path = fsspec.core.url_to_fs(f"{uri}/checkpoints/a")
    fs.invalidate_cache()
    found: dict[str, set[str]] = {}
    for file in fs.find(path):
        name, _, rest = file.removeprefix(path).lstrip("/").partition("/")
        if rest:  # the server keeps the names of empty folders
            found.setdefault(name, set()).add(rest)
    return found


def test_a_lost_machine_costs_one_interval_at_most(
    bucket: str, project: Path, tiny_base: Path, data: Path, whole: bytes
) -> None:
    spoil = at("finetune_assets.models.training.trainer:supervised_nll", 57, signal.SIGKILL)
    running = start(tiny_base, data, project / "a", spoil, **RECIPE)
    assert running.code() == -signal.SIGKILL, running.said
    complete = [name for name, files in stored(bucket).items() if COMPLETE in files]
    shutil.rmtree(settings.local_state_folder())
    again = start(tiny_base, data, project / "a", **RECIPE)
    statistics = again.finish()
    assert f"checkpoints fetched from {bucket}" in again.said
    assert f"checkpoint-{statistics['resumed_from_step']}" in complete
    assert statistics["resumed_from_step"] >= 20
    assert adapter(project / "a") == whole
    checkpoints.remove("a")
    assert stored(bucket) == {}
    assert not checkpoints.folder("a").exists()


def test_a_checkpoint_that_was_cut_short_on_its_way_is_not_taken(
    bucket: str, project: Path, tiny_base: Path, data: Path, whole: bytes
) -> None:
    """Of two in the store one has no marker, and the fetching of the other is cut off once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "supervised_nll", cutting(supervised_nll, 37))
        with pytest.raises(Cut):
            train_here(tiny_base, data, project / "a", **RECIPE)
    there = stored(bucket)
    assert COMPLETE in there["checkpoint-15"]
    fs, path = fsspec.core.url_to_fs(f"{bucket}/checkpoints/a")
    fs.pipe_file(f"{path}/checkpoint-20/adapter_model.safetensors", b"half of")
    shutil.rmtree(settings.local_state_folder())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "get_file", cutting(fs.get_file, 3))
        with pytest.raises(Cut):
            checkpoints.fetch("a")
    assert checkpoints.latest(checkpoints.folder("a")) is None
    assert train_here(tiny_base, data, project / "a", **RECIPE)["resumed_from_step"] == 15
    assert adapter(project / "a") == whole


def publish(base: Path, data: Path, report: Noting) -> dict[str, Any]:
    """Train and publish, as the worker does."""
    manifest = Manifest(asset="adapters", dataset="tiny", fingerprint="a", data_version="a")
    with artifacts.writing(manifest) as out:
        asked = request(base, data, out, **RECIPE)
        return train(replace(asked, fingerprint="a"), this_machine(), report)


def test_training_goes_on_without_the_store_and_publishes_when_it_is_back(
    s3: S3,
    project: Path,
    tiny_base: Path,
    data: Path,
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project)
    report = Noting()
    with ExitStack() as stack:
        make_storage(stack.enter_context(servers()), monkeypatch)
        # Not at a copy's end: training this small may end before the first is there.
        report.on_log = lambda line: stack.close() if line.startswith("step 10/") else None
        with pytest.raises(EndpointConnectionError):
            publish(tiny_base, data, report)
    assert [line for line in report.lines if "could not be copied" in line]
    kept = checkpoints.latest(checkpoints.folder("a"))
    assert kept is not None
    assert kept.name == "checkpoint-30"
    with servers() as server:
        make_storage(server, monkeypatch)
        assert publish(tiny_base, data, Noting())["resumed_from_step"] == 30
        published = artifacts.find("adapters", "tiny", "a")
        assert published is not None
        assert adapter(artifacts.local_copy(published)) == whole
    s3fs.S3FileSystem.clear_instance_cache()


def make_storage(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a bucket of this server be the storage."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv(settings.STORAGE_VARIABLE, server.make_bucket("finetune"))
