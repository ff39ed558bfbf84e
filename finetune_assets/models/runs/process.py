"""`python -m finetune_assets.models.runs.process FOLDER`: one of several processes of a run.

Started by `runs/distributed.py` through `accelerate launch`, which says in the environment
which one it is.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import PartialState
from pydantic import TypeAdapter

from finetune_assets.errors import UserError
from finetune_assets.models.runs import recovery
from finetune_assets.models.runs.distributed import EVENTS, STOP, TOLD, TRAINING, outcome_of
from finetune_assets.models.training.attempt import run_attempt
from finetune_assets.models.training.request import Attempt, Listener, Quiet
from finetune_assets.processes.identity import end_with_parent
from finetune_assets.storage.atomic import replacing


class Events:
    """Writes reports and finished checkpoints as lines of a file that the parent follows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def _say(self, **event: object) -> None:
        self._file.write(json.dumps(event) + "\n")

    def log(self, message: str) -> None:
        """Write a line for people."""
        self._say(log=message)

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Write numbers of an optimizer step."""
        self._say(metrics=values, step=step)

    def observe(self, values: dict[str, float]) -> None:
        """Write a structured event."""
        self._say(observe=values)

    def put(self, name: str, removed: list[str]) -> None:
        """Write that a checkpoint is finished."""
        self._say(checkpoint=name, removed=removed)


def main() -> None:
    """Do this process's part, and say how it ended."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    told = json.loads((folder / TOLD).read_text())
    # A TERM would not do: this process has a session of its own, and may wait for the others.
    end_with_parent(signal.SIGKILL, told["parent"])
    attempt = TypeAdapter(Attempt).validate_python(told["attempt"])
    events = Events(folder / EVENTS)
    listener: Listener = events if rank == 0 else Quiet()
    sink = events if told["copies"] else None
    try:
        arguments = attempt.request.training.arguments
        PartialState(  # meets the other processes
            cpu=attempt.hardware.device == "cpu",
            backend=arguments.get("ddp_backend"),
            timeout=timedelta(seconds=arguments.get("ddp_timeout", 1800)),
        )
        with recovery.explain_full_disk(attempt.root):
            statistics = run_attempt(attempt, listener, sink, _stop_together(folder))
        _say(folder, rank, {"statistics": statistics})
    except SystemExit:
        _say(folder, rank, {"stopped": True})
    except UserError as error:
        shown = {"where": error.where, "cause": error.cause, "remedy": error.remedy}
        _say(folder, rank, {"error": shown})
        _leave(1)
    except Exception as error:
        traceback.print_exc()
        _say(folder, rank, {"out_of_memory": recovery.ran_out_of_memory(error)})
        _leave(1)
    torch.distributed.barrier()  # until the last one is done: the first may still be writing
    torch.distributed.destroy_process_group()
    _leave(0)


@contextmanager
def _stop_together(folder: Path) -> Iterator[Callable[[], bool]]:
    """Yield what says whether the parent asks all to stop.

    It asks by a file: a TERM ends this process at once, as when another has failed.
    """
    (folder / TRAINING).touch()
    yield (folder / STOP).exists


def _say(folder: Path, rank: int, outcome: dict[str, object]) -> None:
    """Write in one rename, so that the parent reads all of it or nothing."""
    with replacing(outcome_of(folder, rank)) as scratch:
        scratch.write_text(json.dumps({**outcome, "time": time.time()}))


def _leave(code: int) -> NoReturn:
    """Leave at once: what Python would still do may wait for a process that waits for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
