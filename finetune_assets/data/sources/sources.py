"""What a dataset's sources are: found, pinned by content, read as one table of raw rows."""

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import fsspec

from finetune_assets import settings
from finetune_assets.catalog.load import Entry
from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources import files
from finetune_assets.data.sources.explain import explain_store_errors
from finetune_assets.data.sources.hub import is_saved_dataset
from finetune_assets.data.sources.spool import cheap_version, spool, spool_saved
from finetune_assets.errors import UserError
from finetune_assets.storage.atomic import replacing
from finetune_assets.storage.fingerprint import LENGTH, digest

SETTLED_SECONDS = 2.0
"""A file that changed less than this ago could change again without its time of change moving."""


@dataclass(frozen=True)
class Pin:
    """Rows of a source, pinned by the hash of their bytes."""

    name: str
    """How people know it: the file's URI, or the source's label."""
    source_index: int
    size: int
    """Bytes."""
    sha256: str
    uri: str
    """Where its bytes are now."""


def pin(entry: Entry, scratch: Path) -> list[Pin]:
    """Find and hash everything that a dataset's sources read.

    Files are hashed where they lie, and only if size or time of change moved since they last were.
    Rows of queries, functions and the hub are first written to `scratch`, one JSON object a line.
    """
    pinned: list[Pin] = []
    for index, source in enumerate(entry.config.sources):
        where = f"{entry.uri}: sources[{index}]"
        if source.path is not None and not (saved := saved_dataset(entry, source)):
            for uri in find_files(entry.locate(source.path), f"sources[{index}].path"):
                pinned.append(Pin(uri, index, *size_and_hash(uri), uri))
            continue
        target = scratch / f"{index}.jsonl"
        if source.path is None:
            spool(source, target, where, folder_of(entry))
        else:
            spool_saved(saved, source.parts, target, where)  # type: ignore[arg-type]
        with target.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        pinned.append(Pin(source.label, index, target.stat().st_size, sha256, str(target)))
    return pinned


def glance(entry: Entry) -> list[object]:
    """Return what tells, without reading rows, that sources may have changed; JSON values."""
    seen: list[object] = []
    for index, source in enumerate(entry.config.sources):
        if source.path is None:
            version = cheap_version(source, f"{entry.uri}: sources[{index}]", folder_of(entry))
            seen.append([source.label, version])
            continue
        if saved := saved_dataset(entry, source):
            uris = sorted(str(p) for p in saved.rglob("*") if p.is_file())
        else:
            uris = find_files(entry.locate(source.path), f"sources[{index}].path")
        seen.extend([uri, _stat(uri)] for uri in uris)
    return [seen, [s.sample for s in entry.config.sources]]


def content_version(pinned: list[Pin], declared: list[Source]) -> str:
    """Return the data version of the rows: their content and sampling, not where they lie."""
    return digest([[p.sha256, declared[p.source_index].sample] for p in pinned])


def saved_dataset(entry: Entry, source: Source) -> Path | None:
    """Return the folder that `Dataset.save_to_disk` wrote, if the source's path is one."""
    located = entry.locate(source.path or "")
    return Path(located) if "://" not in located and is_saved_dataset(Path(located)) else None


def find_files(uri: str, key: str) -> list[str]:
    """Return the files that a path, folder or glob stands for, sorted; UserError for none.

    A folder stands for its data files at any depth; for its text files if it has no others.
    """
    prefix = uri.split("://")[0] + "://" if "://" in uri else ""
    with explain_store_errors(uri):
        found = _matching(uri)
    if not found:
        raise UserError(uri, "no such file", f"mend `{key}` or put the file there")
    for p in found:
        if files.suffix_of(p) not in files.READERS:
            remedy = f"use {', '.join(files.READERS)}, also with .gz or .zst"
            raise UserError(f"{prefix}{p}", "not a type of file that can be read", remedy)
    return [f"{prefix}{p}" for p in found]


def _matching(uri: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(uri)
    fs.invalidate_cache()  # what it remembers hides objects that came since
    if fs.isfile(path):
        return [path]
    if any(c in path for c in "*?["):
        return [p for p in sorted(fs.glob(path)) if fs.isfile(p)]
    return _files_of(fs, path) if fs.isdir(path) else []


def _files_of(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    seen = sorted(p for p in fs.find(folder) if not re.search(r"(?:^|/)[._]", p[len(folder) :]))
    readable = [p for p in seen if files.suffix_of(p) in files.READERS]
    data = [p for p in readable if files.suffix_of(p) not in files.DOCUMENTS]
    return data or readable


def folder_of(entry: Entry) -> Path | None:
    """Return the catalog's folder, if it is on this machine's disk."""
    return None if "://" in entry.uri else Path(entry.uri).parent


def _stat(uri: str) -> list[int | str]:
    """Return a file's size and what moves when its content does: time of change or ETag."""
    fs, path = fsspec.core.url_to_fs(uri)
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        found = os.stat(path)
        return [found.st_size, found.st_mtime_ns, found.st_ino]
    with explain_store_errors(uri):
        fs.invalidate_cache()
        info = fs.info(path)
    changed = info.get("ETag") or info.get("LastModified") or info.get("mtime")
    return [info["size"], str(changed), 0]


def size_and_hash(uri: str) -> tuple[int, str]:
    """Return a file's size and SHA-256; hash it only if it changed since the last time."""
    stat = _stat(uri)
    size = int(stat[0])
    kept = settings.local_state_folder() / "pins" / f"{digest(uri)[:LENGTH]}.json"
    if kept.exists():
        known = json.loads(kept.read_text())
        if known["uri"] == uri and known["stat"] == stat:
            return size, known["sha256"]
    with explain_store_errors(uri), fsspec.open(uri, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore
    settled = not isinstance(stat[1], int) or time.time_ns() - stat[1] > SETTLED_SECONDS * 1e9
    if settled:
        with replacing(kept) as scratch:
            scratch.write_text(json.dumps({"uri": uri, "stat": stat, "sha256": sha256}))
    return size, sha256
