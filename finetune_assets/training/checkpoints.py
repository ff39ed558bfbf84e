"""Checkpoints under the fingerprint of the adapter they lead to, here and in the artefact store.

A checkpoint is complete when its marker is there, which is written last. The trainer writes to the
local disk; where `FINETUNE_STORAGE` is elsewhere, each checkpoint is copied there by a thread while
training goes on, its marker last again, so that another machine can go on from it.
"""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import fsspec

from finetune_assets import settings

COMPLETE = "complete"
"""Written last into a checkpoint; a folder without it was cut short."""
ATTEMPT = "attempt.json"
"""What the last attempt on this machine knew, for the one after a kill."""


def folder(fingerprint: str) -> Path:
    """Where the checkpoints of one adapter lie on this machine."""
    return settings.local_state_folder() / "checkpoints" / fingerprint


def remote(fingerprint: str) -> str | None:
    """Where they are copied to; None where the store is this machine's disk anyway."""
    root = settings.storage_uri()
    return f"{root}/checkpoints/{fingerprint}" if "://" in root else None


def mark_complete(checkpoint: Path) -> None:
    (checkpoint / COMPLETE).touch()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint; those cut short by a kill are removed."""
    found = []
    for path in root.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            found.append(path)
        else:
            shutil.rmtree(path)
    return max(found, key=step_of, default=None)


def prune(root: Path, keep: int, best_step: int | None) -> list[str]:
    """Remove all but the newest `keep` checkpoints and the best one; returns names removed."""
    there = sorted(root.glob("checkpoint-*"), key=step_of)
    removed = [path for path in there[:-keep] if step_of(path) != best_step]
    for path in removed:
        # Without its marker first, so that a kill in between leaves what is known to be cut short.
        (path / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(path)
    return [path.name for path in removed]


def remove(fingerprint: str) -> None:
    """Remove every checkpoint of an adapter that is published."""
    shutil.rmtree(folder(fingerprint), ignore_errors=True)
    if uri := remote(fingerprint):
        fs, path = fsspec.core.url_to_fs(uri)
        fs.invalidate_cache()
        if fs.exists(path):
            fs.rm(path, recursive=True)


def fetch(fingerprint: str) -> int:
    """Copy complete checkpoints that only the store has; returns how many.

    The run may have begun on another machine, which is gone.
    """
    uri, root, count = remote(fingerprint), folder(fingerprint), 0
    if uri is None:
        return 0
    fs, path = fsspec.core.url_to_fs(uri)
    fs.invalidate_cache()
    if not fs.isdir(path):
        return 0
    for source in fs.ls(path, detail=False):
        name = source.rstrip("/").rsplit("/", 1)[-1]
        target = root / name
        if not name.startswith("checkpoint-"):
            if not target.exists():
                root.mkdir(parents=True, exist_ok=True)
                fs.get_file(source, str(target))
        elif fs.exists(f"{source}/{COMPLETE}") and not (target / COMPLETE).exists():
            shutil.rmtree(target, ignore_errors=True)
            fs.get(f"{source}/", f"{target}/", recursive=True)
            mark_complete(target)
            count += 1
    return count


@dataclass(frozen=True)
class Attempt:
    """Of a training process, kept while it runs."""

    micro_batch: int
    """Contexts of a forward pass."""
    out_of_memory_kills: int
    """Processes that the system had ended for want of memory, when this one began."""

    def write(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        (root / ATTEMPT).write_text(json.dumps(vars(self)))

    @classmethod
    def read(cls, root: Path) -> "Attempt | None":
        path = root / ATTEMPT
        return cls(**json.loads(path.read_text())) if path.exists() else None


class Copier:
    """Copies complete checkpoints to the store, one after another, while training goes on."""

    def __init__(self, root: Path, uri: str, log: Any) -> None:
        self._root, self._uri, self._log = root, uri, log
        self._queue: Queue[tuple[str, list[str]] | None] = Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.failure: Exception | None = None

    def put(self, name: str, removed: list[str]) -> None:
        """Copy a checkpoint, then remove from the store those that were removed here."""
        self._queue.put((name, removed))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._copy(*item)
            except Exception as error:  # said at once and kept: training is not to end for it
                self.failure = error
                self._log(f"checkpoint {item[0]} could not be copied to {self._uri}: {error}")

    def _copy(self, name: str, removed: list[str]) -> None:
        fs, path = fsspec.core.url_to_fs(self._uri)
        source = self._root / name
        if (source / COMPLETE).exists():
            beside = [p for p in self._root.iterdir() if p.is_file() and p.name != ATTEMPT]
            for file in beside:
                fs.put_file(str(file), f"{path}/{file.name}")
            for file in sorted(source.rglob("*")):
                if file.is_file() and file.name != COMPLETE:
                    fs.put_file(str(file), f"{path}/{name}/{file.relative_to(source)}")
            fs.pipe_file(f"{path}/{name}/{COMPLETE}", b"")
            self.failure = None
            self._log(f"{name} is in the store")
        for old in removed:
            if fs.exists(f"{path}/{old}/{COMPLETE}"):
                fs.rm_file(f"{path}/{old}/{COMPLETE}")
                fs.rm(f"{path}/{old}", recursive=True)


@contextmanager
def copying(root: Path, fingerprint: str, log: Any) -> Iterator[Copier | None]:
    """A copier where one is needed; at the end of the block, it finishes what it has begun."""
    uri = remote(fingerprint)
    if uri is None:
        yield None
        return
    copier = Copier(root, uri, log)
    copier._thread.start()
    try:
        yield copier
    finally:
        copier._queue.put(None)
        copier._thread.join()
