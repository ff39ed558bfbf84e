"""One attempt on several devices: a process for each is started, followed and judged from here.

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

from accelerate.commands.launch import launch_command, launch_command_parser
from pydantic import TypeAdapter
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from finetune_assets.errors import UserError
from finetune_assets.models.runs import accelerate_config, recovery
from finetune_assets.models.training.request import Attempt, CheckpointSink, Listener
from finetune_assets.storage import checkpoints

TOLD, EVENTS, LOGS, TRAINING, STOP = "told.json", "events.jsonl", "logs", "training", "stop"
"""Names in the folder; of `training` and `stop` it only matters whether they are there."""
CONFIG, DEEPSPEED = "accelerate.json", "deepspeed.json"
PROCESS = "finetune_assets.models.runs.process"
"""The module that each process runs."""
POLL_SECONDS = 0.2
TAIL_LINES = 12
"""Last lines of a process that are shown when it has failed."""
SAME_TIME = 2.0
"""Seconds within which the end of one process brings about that of the others."""


class ProcessFailed(Exception):
    """One of the processes has failed; the message says which, how, and what to do about it."""


@dataclass(frozen=True)
class End:
    """How a process ended before its work was done."""

    rank: int
    code: int
    """Exit code; negative is a signal."""
    time: float
    """Seconds since 1970."""
    said: dict[str, Any]
    """What the process wrote of its end; empty if it could not."""


def run_processes(
    attempt: Attempt, processes: int, listener: Listener, sink: CheckpointSink | None
) -> dict[str, Any]:
    """Make an attempt with several processes and return its statistics.

    Raises:
        UserError: a process raised it.
        MemoryError: a process ran out of memory.
        ProcessFailed: one ended in another way; the others were ended with it.
        SystemExit: a TERM arrived; a checkpoint was written first.
    """
    checkpoints.latest(attempt.root)  # removes what was cut short, before several look at once
    kills = recovery.out_of_memory_kills()
    folder = attempt.root / "processes"  # and what they said stays there if they fail
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(attempt, processes, folder, copies=sink is not None)
    with _follow(folder, listener, sink), _stop_together(folder):
        ends = _launch(attempt, folder)
    if ends:
        culprit = find_culprit(ends)
        if recovery.out_of_memory_kills() > kills and culprit.code == -signal.SIGKILL:
            raise MemoryError
        raise explain(culprit, processes, _tail(folder, culprit.rank))
    outcome = json.loads(outcome_of(folder, 0).read_text())
    if outcome.get("stopped") or (folder / STOP).exists():
        raise SystemExit(128 + signal.SIGTERM)
    return outcome["statistics"]


def outcome_of(folder: Path, rank: int) -> Path:
    """Return the file in which a process says how it ended."""
    return folder / f"outcome-{rank}.json"


def _write(attempt: Attempt, processes: int, folder: Path, *, copies: bool) -> None:
    """Write down what the processes are told."""
    training, hardware = attempt.request.training, attempt.hardware
    request = replace(attempt.request, training=accelerate_config.fit_optimizer(training, hardware))
    told = TypeAdapter(Attempt).dump_python(replace(attempt, request=request), mode="json")
    told = {"attempt": told, "parent": os.getpid(), "copies": copies}
    (folder / TOLD).write_text(json.dumps(told))
    (folder / EVENTS).touch()
    deepspeed = accelerate_config.deepspeed_config(training, hardware, attempt.schedule, processes)
    (folder / DEEPSPEED).write_text(json.dumps(deepspeed))
    config = accelerate_config.accelerate_config(training, hardware, processes, folder / DEEPSPEED)
    (folder / CONFIG).write_text(json.dumps(config))


def _launch(attempt: Attempt, folder: Path) -> list[End]:
    """Run the processes to their end; the result is empty if all ended well."""
    given = {
        "config_file": folder / CONFIG,
        "num_cpu_threads_per_process": attempt.hardware.threads,
        "log_dir": folder / LOGS,
        "role": "process ",
        "tee": "3",
    }
    options = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    arguments = launch_command_parser().parse_args([*options, "--module", PROCESS, str(folder)])
    # A TERM is for `_stop_together`; the launcher would end the processes one by one.
    arguments.signals_to_handle = "SIGINT"
    before = signal.getsignal(signal.SIGINT)
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        return [_end(folder, rank, found) for rank, found in error.failures.items()]
    finally:
        signal.signal(signal.SIGINT, before)
    return []


def _end(folder: Path, rank: int, found: ProcessFailure) -> End:
    path = outcome_of(folder, rank)
    said = json.loads(path.read_text()) if path.exists() else {}
    return End(rank, found.exitcode, said.get("time", float(found.timestamp)), said)


def find_culprit(ends: list[End]) -> End:
    """Find the process whose end brought about that of the others."""
    began = min(end.time for end in ends)
    near = [end for end in ends if end.time <= began + SAME_TIME]
    # A killed one leaves its time in whole seconds, so it goes before those that ended at the same
    # time. With a TERM the launcher ends those that are left when one has ended.
    return min(near, key=lambda end: (end.code == -signal.SIGTERM, end.code >= 0, end.time))


def explain(end: End, processes: int, tail: str) -> Exception:
    """Return what to raise for a process that has ended."""
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
def _stop_together(folder: Path) -> Iterator[None]:
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
def _follow(folder: Path, listener: Listener, sink: CheckpointSink | None) -> Iterator[None]:
    """Pass on what the first process reports, while the block runs."""
    ended = threading.Event()

    def follow() -> None:
        with (folder / EVENTS).open() as file:
            part = ""
            while True:
                last = ended.wait(POLL_SECONDS)
                *lines, part = (part + file.read()).split("\n")
                for line in lines:
                    _pass_on(json.loads(line), listener, sink)
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _pass_on(event: Mapping[str, Any], listener: Listener, sink: CheckpointSink | None) -> None:
    if "log" in event:
        listener.log(event["log"])
    elif "metrics" in event:
        listener.metrics(event["metrics"], event["step"])
    elif "observe" in event:
        listener.observe(event["observe"])
    elif sink is not None:
        sink.put(event["checkpoint"], event["removed"])
