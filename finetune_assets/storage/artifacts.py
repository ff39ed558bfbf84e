"""Artifact folders: written to scratch, published whole, found again by fingerprint."""

import errno
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pydantic import BaseModel, ConfigDict

from finetune_assets import settings
from finetune_assets.errors import UserError
from finetune_assets.processes.identity import is_gone, this_process
from finetune_assets.storage.fingerprint import file_digest

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class RecordPart(BaseModel):
    """A group of values in a record."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Record(RecordPart):
    """What a task measured; each asset has its own record, kept as the manifest's statistics."""

    peak_rss_gb: float | None = None
    """Largest resident memory of the worker process, in GB; None where no worker made it."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


class File(BaseModel):
    """A file of an artifact."""

    path: str
    size: int
    """Bytes."""
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, what it was made from, and by what."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int = SCHEMA_VERSION
    asset: str
    dataset: str
    fingerprint: str
    data_version: str
    files: list[File] = []
    upstream: dict[str, str] = {}
    """Data versions of the artifacts it was made from."""
    config: dict[str, Any] = {}
    """The resolved part of the configuration that the task read."""
    code_version: str = ""
    git_commit: str | None = None
    libraries: dict[str, str] = {}
    created_at: float = 0.0
    """Unix time, seconds."""
    seconds: float = 0.0
    statistics: dict[str, Any] = {}
    """What the task measured; JSON values."""
    mlflow_run_id: str | None = None

    def record(self, kind: type[AnyRecord]) -> AnyRecord:
        """Return the statistics as the record that the asset's task wrote."""
        return kind.model_validate(self.statistics)

    @property
    def uri(self) -> str:
        """URI of the artifact's folder."""
        return folder(self.asset, self.dataset, self.fingerprint)


def folder(asset: str, dataset: str, fingerprint: str) -> str:
    """Return the URI of an artifact's folder."""
    return f"{settings.storage_uri()}/{asset}/{dataset}/{fingerprint}"


def find(asset: str, dataset: str, fingerprint: str) -> Manifest | None:
    """Return the complete artifact with this fingerprint, or None.

    A folder without a manifest, or whose files are not those of its manifest, does not exist for
    readers; the next publication replaces it.
    """
    uri = folder(asset, dataset, fingerprint)
    fs, path = fsspec.core.url_to_fs(uri)
    if not fs.exists(path):
        return None
    if not fs.exists(f"{path}/{MANIFEST}"):
        log.warning("%s was interrupted before it was complete; it is made again", uri)
        return None
    manifest = Manifest.model_validate_json(fs.cat_file(f"{path}/{MANIFEST}"))
    damage = _damage(fs, path, manifest)
    if damage:
        log.warning("%s is damaged (%s); it is made again", uri, damage)
        return None
    return manifest


def read(manifest_uri: str) -> Manifest:
    """Return the manifest of an artifact; UserError if that was removed or damaged since."""
    fs, path = fsspec.core.url_to_fs(manifest_uri)
    damage: str | None = "it has no manifest"
    if fs.exists(path):
        manifest = Manifest.model_validate_json(fs.cat_file(path))
        damage = _damage(fs, path.rsplit("/", 1)[0], manifest)
        if damage is None:
            return manifest
    asset, dataset = manifest_uri.split("/")[-4:-2]
    cause = f"the artifact is gone or damaged: {damage}"
    raise UserError(manifest_uri, cause, f"materialize {asset} for '{dataset}' again")


def _damage(fs: fsspec.AbstractFileSystem, path: str, manifest: Manifest) -> str | None:
    for file in manifest.files:
        target = f"{path}/{file.path}"
        if not fs.exists(target):
            return f"{file.path} is missing"
        if fs.size(target) != file.size:
            return f"{file.path} has {fs.size(target)} bytes, not {file.size}"
    return None


def local_copy(manifest: Manifest) -> Path:
    """Return a folder on this machine with an artifact's files: its own, or a cached copy."""
    fs, path = fsspec.core.url_to_fs(manifest.uri)
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        return Path(path)
    cache = settings.local_state_folder() / "cache" / manifest.fingerprint
    if not cache.exists():
        scratch = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}")
        for file in manifest.files:
            target = scratch / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{path}/{file.path}", str(target))
        _rename(scratch, cache)
    return cache


@contextmanager
def writing(manifest: Manifest) -> Iterator[Path]:
    """Give a scratch folder to write files into; publish it when the block ends well.

    A complete artifact of the same fingerprint is replaced: whoever writes has asked for that. The
    manifest's `files`, `created_at` and `seconds` are filled in.
    """
    scratch = settings.local_state_folder() / "scratch" / f"{manifest.fingerprint}.{this_process()}"
    started = time.time()
    try:
        _remove_abandoned(scratch.parent, manifest.fingerprint)
        scratch.mkdir(parents=True)
        yield scratch
        paths = sorted(p for p in scratch.rglob("*") if p.is_file())
        manifest.files = [
            File(path=str(p.relative_to(scratch)), size=p.stat().st_size, sha256=file_digest(p))
            for p in paths
        ]
        manifest.created_at, manifest.seconds = started, round(time.time() - started, 3)
        _publish(scratch, manifest)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            manifest.uri,
            "the disk is full; nothing that was complete is lost",
            f"free space under {settings.storage_uri()} or set {settings.STORAGE_VARIABLE} "
            "to a larger disk, then run again",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, manifest: Manifest) -> None:
    fs, path = fsspec.core.url_to_fs(manifest.uri)
    text = manifest.model_dump_json(indent=2)
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        (scratch / MANIFEST).write_text(text)
        target = Path(path)
        replaced = scratch.with_name(f"{scratch.name}.replaced")
        if target.exists():
            _rename(target, replaced)
        _rename(scratch, target)
        shutil.rmtree(replaced, ignore_errors=True)
        return
    if fs.exists(f"{path}/{MANIFEST}"):
        fs.rm_file(f"{path}/{MANIFEST}")  # half-replaced files are not the old artifact
    for file in manifest.files:
        fs.put_file(str(scratch / file.path), f"{path}/{file.path}")
    fs.pipe_file(f"{path}/{MANIFEST}", text.encode())


def _rename(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _remove_abandoned(parent: Path, fingerprint: str) -> None:
    """Remove scratch folders of this fingerprint whose writer is no longer alive."""
    for path in parent.glob(f"{fingerprint}.*") if parent.exists() else ():
        writer = path.name.removeprefix(f"{fingerprint}.").split(".")[0]
        if is_gone(writer) or writer == this_process():
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON that people can read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
