"""Checkpoints under the fingerprint of the adapter they lead to, here and in the artifact store.

A checkpoint is complete when its marker is there, which is written last. The trainer writes to the
local disk; where `FINETUNE_STORAGE` is elsewhere, each checkpoint is copied there by a thread while
training goes on, its marker last again, so that another machine can go on from it.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import fsspec

from finetune_assets import settings
from finetune_assets.storage.atomic import replacing

COMPLETE = "complete"
"""Written last into a checkpoint; a folder without it was cut short."""
ATTEMPT = "attempt.json"
"""File with the `AttemptNote` of the last attempt on this machine."""


def folder(fingerprint: str) -> Path:
    """Return where the checkpoints of one adapter lie on this machine."""
    return settings.local_state_folder() / "checkpoints" / fingerprint


def remote(fingerprint: str) -> str | None:
    """Return where they are copied to; None where the store is this machine's disk anyway."""
    root = settings.storage_uri()
    return f"{root}/checkpoints/{fingerprint}" if "://" in root else None


def mark_complete(checkpoint: Path) -> None:
    """Say that every file is whole, once the disk has them: a machine may lose its power."""
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    (checkpoint / COMPLETE).touch()


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.split("-")[1])


def latest(root: Path) -> Path | None:
    """Return the newest complete checkpoint, and remove those cut short by a kill."""
    found = []
    for path in root.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            found.append(path)
        else:
            shutil.rmtree(path)
    return max(found, key=step_of, default=None)


def prune(root: Path, keep: int, best_step: int | None) -> list[str]:
    """Remove all but the newest `keep` checkpoints and the best one; return names removed."""
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
    """Copy complete checkpoints that only the store has, and return how many.

    The run may have begun on another machine, which is gone.
    """
    uri, root, count = remote(fingerprint), folder(fingerprint), 0
    if uri is None:
        return 0
    fs, path = fsspec.core.url_to_fs(uri)
    fs.invalidate_cache()
    if not fs.isdir(path):
        return 0
    root.mkdir(parents=True, exist_ok=True)
    for source in fs.ls(path, detail=False):
        target = root / source.rstrip("/").rsplit("/", 1)[-1]
        if not target.name.startswith("checkpoint-"):
            if not target.exists():
                _bring(fs, source, target)
        elif fs.exists(f"{source}/{COMPLETE}") and not (target / COMPLETE).exists():
            shutil.rmtree(target, ignore_errors=True)
            _bring(fs, source, target)
            count += 1
    return count


def _bring(fs: fsspec.AbstractFileSystem, source: str, target: Path) -> None:
    """Copy a file or a folder here, which gets its name only when it is whole."""
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    for path in fs.find(source):
        part = scratch / path.removeprefix(source).lstrip("/")
        part.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(path, str(part))
    scratch.rename(target)


@dataclass(frozen=True)
class AttemptNote:
    """What an attempt at training leaves for the one after it, should it be killed."""

    micro_batch: int
    """Contexts of a forward pass."""
    out_of_memory_kills: int
    """Processes that the system had ended for want of memory, when this one began."""

    def write(self, root: Path) -> None:
        """Keep it beside the checkpoints, whole at any time."""
        with replacing(root / ATTEMPT) as scratch:
            scratch.write_text(json.dumps(vars(self)))

    @classmethod
    def read(cls, root: Path) -> "AttemptNote | None":
        """Return the note of the last attempt, if there was one."""
        path = root / ATTEMPT
        return cls(**json.loads(path.read_text())) if path.exists() else None


class Copier:
    """Copies complete checkpoints to the store, one after another, while training goes on."""

    def __init__(self, root: Path, uri: str, log: Callable[[str], None]) -> None:
        self._root, self._uri, self._log = root, uri, log
        self._queue: Queue[tuple[str, list[str]] | None] = Queue()
        self._waiting: set[str] = set()
        """Checkpoints that are complete here, and not in the store yet."""
        self._removed: set[str] = set()
        """Checkpoints that are no longer here, and perhaps still in the store."""
        self._wanted = True
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, name: str, removed: list[str]) -> None:
        """Copy a checkpoint, then remove from the store those that were removed here."""
        self._queue.put((name, removed))

    def end(self, *, copying: bool) -> None:
        """Wait for what is being copied, and, if `copying`, for what is still to be."""
        self._wanted = copying
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        item: tuple[str, list[str]] | None = ("", [])
        while item is not None:
            item = self._queue.get()
            if item is not None:
                self._waiting.add(item[0])
                self._removed.update(item[1])
            if self._queue.empty():  # else a newer one is there, and this one may be gone
                self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        self._waiting -= self._removed
        try:
            # The oldest first: whoever finds the newest finds the best one too.
            for name in sorted(self._waiting, key=lambda name: step_of(Path(name))):
                if self._wanted:
                    self._copy(name)
            for name in sorted(self._removed):
                if self._wanted:
                    self._remove(name)
        except Exception as error:  # training is not to end for it, and the next one tries again
            self._log(f"checkpoints could not be copied to {self._uri}: {error}; training goes on")

    def _copy(self, name: str) -> None:
        fs, path = fsspec.core.url_to_fs(self._uri)
        source = self._root / name
        try:
            for file in self._root.iterdir():
                of_the_run = file.is_file() and file.name != ATTEMPT and file.name[0] != "."
                if of_the_run and not fs.exists(f"{path}/{file.name}"):
                    fs.put_file(str(file), f"{path}/{file.name}")
            for file in sorted(source.rglob("*")):
                if file.is_file() and file.name != COMPLETE:
                    fs.put_file(str(file), f"{path}/{name}/{file.relative_to(source)}")
        except FileNotFoundError:
            if (source / COMPLETE).exists():
                raise
        if not (source / COMPLETE).exists():
            return  # newer ones took its place meanwhile
        fs.pipe_file(f"{path}/{name}/{COMPLETE}", b"")
        self._waiting.discard(name)
        self._log(f"{name} is in the store")

    def _remove(self, name: str) -> None:
        fs, path = fsspec.core.url_to_fs(self._uri)
        if fs.exists(f"{path}/{name}/{COMPLETE}"):
            fs.rm_file(f"{path}/{name}/{COMPLETE}")
        if fs.exists(f"{path}/{name}"):
            fs.rm(f"{path}/{name}", recursive=True)
        self._removed.discard(name)


@contextmanager
def copy_to_store(
    root: Path, fingerprint: str, log: Callable[[str], None]
) -> Iterator[Copier | None]:
    """Yield a copier where one is needed.

    A block that ends well leads to a published adapter, for which no checkpoint is needed; one that
    is cut short leaves what another machine needs to go on.
    """
    uri = remote(fingerprint)
    if uri is None:
        yield None
        return
    copier = Copier(root, uri, log)
    try:
        yield copier
    except BaseException:
        copier.end(copying=True)
        raise
    copier.end(copying=False)
