"""One attempt on several devices: a process for each, started, followed and judged from here.

`accelerate launch` starts the processes of `runs/process.py`, from within this one. They share
a folder: what is to be done, what the first process reports, how each has ended, and whether all
are to stop.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_assets.errors import UserError
from finetune_assets.models.runs import recovery
from finetune_assets.models.runs.accelerate_config import (
    accelerate_config,
    deepspeed_config,
    fitted,
)
from finetune_assets.models.training.task import Copying, Report, Task
from finetune_assets.storage import checkpoints

TASK, EVENTS, LOGS, TRAINING, STOP = "task.json", "events.jsonl", "logs", "training", "stop"
"""Names in the folder; `training` and `stop` are there or not."""
CONFIG, DEEPSPEED = "accelerate.json", "deepspeed.json"
PROCESS = "finetune_assets.models.runs.process"
"""Module that each process runs."""
POLL_SECONDS = 0.2
TAIL_LINES = 12
"""Last lines of a process that are shown when it has failed."""
SAME_TIME = 2.0
"""Seconds within which the end of one process brings about that of the others."""


class ProcessFailed(Exception):
    """One of the processes ended; the message says which, how, and what to do about it."""


@dataclass(frozen=True)
class End:
    """How a process ended before its work was done."""

    rank: int
    code: int
    """Exit code; negative is a signal."""
    time: float
    """Seconds since 1970."""
    said: dict[str, Any]
    """What it wrote of it; empty if it could not."""


def run(task: Task, processes: int, report: Report, copier: Copying | None) -> dict[str, Any]:
    """Do a task with several processes and return its statistics.

    Raises:
        UserError: a process raised it.
        MemoryError: a process ran out of memory.
        ProcessFailed: one ended in another way; the others were ended with it.
        SystemExit: a TERM arrived; a checkpoint was written first.
    """
    checkpoints.latest(task.root)  # removes what was cut short, before several look at once
    kills = recovery.out_of_memory_kills()
    folder = task.root / "processes"  # and what they said stays there if they fail
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(task, processes, folder, copier is not None)
    with _following(folder, report, copier), _stopping_together(folder):
        ends = _launch(task, processes, folder)
    if ends:
        culprit = first(ends)
        if recovery.out_of_memory_kills() > kills and culprit.code == -signal.SIGKILL:
            raise MemoryError
        raise failure(culprit, processes, _tail(folder, culprit.rank))
    outcome = json.loads(outcome_of(folder, 0).read_text())
    if outcome.get("stopped") or (folder / STOP).exists():
        raise SystemExit(128 + signal.SIGTERM)
    return outcome["statistics"]


def outcome_of(folder: Path, rank: int) -> Path:
    """File in which a process says how it ended."""
    return folder / f"outcome-{rank}.json"


def _write(task: Task, processes: int, folder: Path, copies: bool) -> None:
    """What the processes are told."""
    from pydantic import TypeAdapter

    training, hardware = task.request.training, task.hardware
    request = replace(task.request, training=fitted(training, hardware))
    told = TypeAdapter(Task).dump_python(replace(task, request=request), mode="json")
    told = {"task": told, "parent": os.getpid(), "copies": copies}
    (folder / TASK).write_text(json.dumps(told))
    (folder / EVENTS).touch()
    deepspeed = deepspeed_config(training, hardware, task.schedule, processes)
    (folder / DEEPSPEED).write_text(json.dumps(deepspeed))
    config = accelerate_config(training, hardware, processes, folder / DEEPSPEED)
    (folder / CONFIG).write_text(json.dumps(config))


def _launch(task: Task, processes: int, folder: Path) -> list[End]:
    """Run the processes to their end; the result is empty if all ended well."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    given = {
        "config_file": folder / CONFIG,
        "num_cpu_threads_per_process": task.hardware.threads,
        "log_dir": folder / LOGS,
        "role": "process ",
        "tee": "3",
    }
    options = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    arguments = launch_command_parser().parse_args([*options, "--module", PROCESS, str(folder)])
    # A TERM is for `_stopping_together`; the launcher would end the processes one by one.
    arguments.signals_to_handle = "SIGINT"
    before = signal.getsignal(signal.SIGINT)
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        return [_end(folder, rank, found) for rank, found in error.failures.items()]
    finally:
        signal.signal(signal.SIGINT, before)
    return []


def _end(folder: Path, rank: int, found: Any) -> End:
    path = outcome_of(folder, rank)
    said = json.loads(path.read_text()) if path.exists() else {}
    return End(rank, found.exitcode, said.get("time", float(found.timestamp)), said)


def first(ends: list[End]) -> End:
    """The process whose end brought about that of the others.

    A killed one leaves no exact time, so it goes before those that ended at the same time.
    """
    began = min(end.time for end in ends)
    near = [end for end in ends if end.time <= began + SAME_TIME]
    return min(near, key=lambda end: (end.code >= 0, end.time))


def failure(end: End, processes: int, tail: str) -> Exception:
    """What to raise for a process that has ended."""
    if "error" in end.said:
        return UserError(**end.said["error"])
    if end.said.get("out_of_memory"):
        return MemoryError()
    how = f"ended with code {end.code}"
    if end.code < 0:
        how = f"was killed by {signal.Signals(-end.code).name}"
    return ProcessFailed(
        f"process {end.rank} of {processes} {how}, and the others were ended. Its last lines:\n"
        f"{tail or '(nothing on stderr)'}\n"
        "  remedy: mend the cause and run again: it goes on from the last checkpoint"
    )


def _tail(folder: Path, rank: int) -> str:
    found = list((folder / LOGS).glob(f"*/attempt_0/{rank}/stderr.log"))
    lines = found[0].read_text(errors="replace").splitlines() if found else []
    return "\n".join(lines[-TAIL_LINES:])


@contextmanager
def _stopping_together(folder: Path) -> Iterator[None]:
    """On TERM, ask the processes to stop after the same step, or end at once before the first."""

    def ask(*_: object) -> None:
        if not (folder / TRAINING).exists():
            raise SystemExit(128 + signal.SIGTERM)
        (folder / STOP).touch()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _following(folder: Path, report: Report, copier: Copying | None) -> Iterator[None]:
    """Pass on what the first process reports, while the block runs."""
    ended = threading.Event()

    def follow() -> None:
        with (folder / EVENTS).open() as file:
            part = ""
            while True:
                last = ended.wait(POLL_SECONDS)
                *lines, part = (part + file.read()).split("\n")
                for line in lines:
                    _pass_on(json.loads(line), report, copier)
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _pass_on(event: Mapping[str, Any], report: Report, copier: Copying | None) -> None:
    if "log" in event:
        report.log(event["log"])
    elif "metrics" in event:
        report.metrics(event["metrics"], event["step"])
    elif "observe" in event:
        report.observe(event["observe"])
    elif copier is not None:
        copier.put(event["checkpoint"], event["removed"])
