"""Artifacts appear whole or not at all, and damage is noticed."""

import errno
import os
from pathlib import Path

import pytest

from finetune_assets.errors import UserError
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import MANIFEST, Manifest
from finetune_assets.storage.fingerprint import fingerprint


def manifest(fingerprint: str = "f1") -> Manifest:
    return Manifest(asset="adapters", dataset="d", fingerprint=fingerprint, data_version="v")


def publish(text: str = "hello") -> Manifest:
    made = manifest()
    with artifacts.writing(made) as out:
        (out / "sub").mkdir()
        (out / "sub" / "a.txt").write_text(text)
    return made


def test_what_is_published_is_found_with_sizes_and_hashes(project: Path) -> None:
    made = publish()
    found = artifacts.find("adapters", "d", "f1")
    assert found == made
    assert [(f.path, f.size, len(f.sha256)) for f in found.files] == [("sub/a.txt", 5, 64)]
    assert (artifacts.local_copy(found) / "sub" / "a.txt").read_text() == "hello"


def test_a_failed_task_publishes_nothing_and_leaves_nothing(project: Path) -> None:
    with pytest.raises(RuntimeError), artifacts.writing(manifest()) as out:
        (out / "a.txt").write_text("half")
        raise RuntimeError
    assert artifacts.find("adapters", "d", "f1") is None
    assert not any((project / "storage" / "scratch").iterdir())


def test_a_folder_without_manifest_does_not_exist_and_is_replaced(project: Path) -> None:
    made = publish()
    (artifacts.local_copy(made) / MANIFEST).unlink()
    assert artifacts.find("adapters", "d", "f1") is None
    publish("again")
    found = artifacts.find("adapters", "d", "f1")
    assert found is not None
    assert (artifacts.local_copy(found) / "sub" / "a.txt").read_text() == "again"


def test_a_truncated_file_is_damage(project: Path) -> None:
    made = publish()
    (artifacts.local_copy(made) / "sub" / "a.txt").write_text("he")
    assert artifacts.find("adapters", "d", "f1") is None
    with pytest.raises(UserError, match=r"a.txt has 2 bytes, not 5(.|\n)*materialize adapters"):
        artifacts.read(f"{made.uri}/{MANIFEST}")


def test_scratch_of_a_dead_writer_is_removed(project: Path) -> None:
    abandoned = project / "storage" / "scratch" / "f1.999999999"
    abandoned.mkdir(parents=True)
    publish()
    assert not abandoned.exists()


def test_a_full_disk_is_a_clear_error_and_loses_nothing(project: Path) -> None:
    first = publish()
    with (
        pytest.raises(UserError, match=r"the disk is full(.|\n)*FINETUNE_STORAGE"),
        artifacts.writing(manifest("f2")) as out,
    ):
        (out / "a.txt").write_text("x")
        # The device on which every write meets a full disk.
        with Path("/dev/full").open("w") as full:
            full.write("x")
    assert artifacts.find("adapters", "d", "f2") is None
    assert artifacts.find("adapters", "d", "f1") == first


def test_other_errors_of_the_system_stay_what_they_are(project: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EACCES)), artifacts.writing(manifest()):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def test_any_fsspec_store_will_do(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_STORAGE", "memory://store")
    monkeypatch.chdir(project)
    made = publish()
    found = artifacts.find("adapters", "d", "f1")
    assert found == made
    assert (artifacts.local_copy(found) / "sub" / "a.txt").read_text() == "hello"


def test_each_input_changes_the_fingerprint_and_key_order_does_not() -> None:
    base = fingerprint("a", "1", {"x": 1, "y": 2}, {"u": "1"}, {"torch": "2"})
    assert base == fingerprint("a", "1", {"y": 2, "x": 1}, {"u": "1"}, {"torch": "2"})
    others = {
        fingerprint("b", "1", {"x": 1, "y": 2}, {"u": "1"}, {"torch": "2"}),
        fingerprint("a", "2", {"x": 1, "y": 2}, {"u": "1"}, {"torch": "2"}),
        fingerprint("a", "1", {"x": 1, "y": 3}, {"u": "1"}, {"torch": "2"}),
        fingerprint("a", "1", {"x": 1, "y": 2}, {"u": "2"}, {"torch": "2"}),
        fingerprint("a", "1", {"x": 1, "y": 2}, {"u": "1"}, {"torch": "3"}),
    }
    assert len(others | {base}) == 6
