"""What a training run does when memory or the disk is full, or it is told to end."""

import errno
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from finetune_assets.errors import UserError
from finetune_assets.models.planning.schedule import Schedule
from finetune_assets.storage import checkpoints
from finetune_assets.storage.checkpoints import AttemptNote

SAID = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
"""What torch's allocators say; the CPU's raises no type of its own."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left, on the device or the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in SAID)


def halve(schedule: Schedule) -> Schedule:
    """Return the same steps with at most half the contexts in a forward pass, which needs two."""
    if schedule.micro_batch == 1:
        raise UserError(
            "training",
            "out of memory, with one context in a forward pass",
            "lower `training.max_length`, or write `gradient_checkpointing: true`; "
            "`finetune plan` says what would fit",
        )
    of_a_step = schedule.micro_batch * schedule.accumulation
    half = range(1, schedule.micro_batch // 2 + 1)
    micro = max(size for size in half if of_a_step % size == 0)
    return replace(schedule, micro_batch=micro, accumulation=of_a_step // micro)


def first_schedule(planned: Schedule, root: Path, log: Callable[[str], None]) -> Schedule:
    """Return the planned batches, or those that an attempt before this one came to.

    Where the system ended that attempt for want of memory, it could not say so: it is known by the
    file that it left and by the system's count of such ends.
    """
    before = AttemptNote.read(root)
    if before is None or before.micro_batch > planned.micro_batch:
        return planned
    while planned.micro_batch > before.micro_batch:
        planned = halve(planned)
    if out_of_memory_kills() > before.out_of_memory_kills and planned.micro_batch > 1:
        planned = halve(planned)
        log(
            "the system ran out of memory in the last attempt: "
            f"{planned.micro_batch} x {planned.accumulation} contexts a step from now on"
        )
    return planned


def forget_another_schedule(root: Path, schedule: Schedule, log: Callable[[str], None]) -> None:
    """Remove checkpoints of a run of another number of steps.

    The same recipe has one where `devices.count: auto` meets a machine with other devices, and the
    batches are not the same: its learning rate is another at every step.
    """
    newest = checkpoints.latest(root)
    if newest is None:
        return
    steps = json.loads((newest / "trainer_state.json").read_text())["max_steps"]
    if steps != schedule.total_steps:
        shutil.rmtree(root)
        log(
            f"checkpoints of a run of {steps} steps are left aside, as this one has "
            f"{schedule.total_steps} on this machine's devices: training begins with its first step"
        )


def out_of_memory_kills() -> int:
    """Count processes that Linux has ended for want of memory since it started; 0 elsewhere."""
    try:
        counters = Path("/proc/vmstat").read_text()
    except FileNotFoundError:
        return 0
    found = (line.split()[1] for line in counters.splitlines() if line.startswith("oom_kill "))
    return int(next(found, "0"))


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn what torch, safetensors and Python say of a full disk into one clear error."""
    try:
        yield
    except Exception as error:
        codes = (errno.ENOSPC, errno.EDQUOT)
        said = str(error).lower()
        full = isinstance(error, OSError) and error.errno in codes
        written = "no space left" in said or "writer failed" in said or "unexpected pos" in said
        if not full and not written:
            raise
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / 1e9
        raise UserError(
            str(folder),
            f"a checkpoint could not be written: the disk is full ({free:.2f} GB free); "
            "the last complete checkpoint is kept",
            "free space and run again: it goes on from there",
        ) from error


@contextmanager
def stop_on_term() -> Iterator[Callable[[], bool]]:
    """Yield what says whether a TERM has arrived, for a trainer to end before its next pass."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked.is_set():  # after the last forward pass
        raise SystemExit(128 + signal.SIGTERM)
