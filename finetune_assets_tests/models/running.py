"""Trainings of the tiny base, here or in processes that can be killed."""

import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.models.runs.train import train
from finetune_assets.models.training.request import Quiet, Request
from finetune_assets.storage import checkpoints

RECIPE: dict[str, Any] = {
    "num_train_epochs": 6,
    "max_length": 64,
    "train_batch_size": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "evals_per_epoch": 1,
    "lora": {"r": 4, "alpha": 8},
}
"""30 steps of 2 forward passes, a checkpoint every 5 steps."""

RANDOM: dict[str, Any] = {
    "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
    "neftune_noise_alpha": 5,
    "logging_steps": 3,
}
"""Changes of the recipe after which each forward pass draws random numbers, and a report is of
steps before and after a checkpoint."""

CURVES = ("train_loss", "validation_loss", "learning_rate", "steps", "best_step")
"""Of the statistics, what must not depend on where a run was cut off."""

START = multiprocessing.get_context("forkserver")
"""Processes begin as copies of one that has imported everything, which takes seconds each."""
START.set_forkserver_preload(["finetune_assets.models.training.attempt", __name__])

SECONDS = 120.0
"""After which a test gives up."""


@dataclass
class Noting(Quiet):
    """Keeps what a training says, and prints it for whoever reads the output of a process."""

    lines: list[str] = field(default_factory=list)
    on_log: Callable[[str], None] | None = None

    def log(self, message: str) -> None:
        self.lines.append(message)
        print(message, flush=True)
        if self.on_log:
            self.on_log(message)


def request(base: Path, data: Path, out: Path, **changes: Any) -> Request:
    """A training that writes to `out`, whose name is its fingerprint."""
    out.mkdir(exist_ok=True)
    in_order = changes.pop("in_order", False)
    recipe = Training.model_validate({**RECIPE, **changes})
    return Request(base, data, out, out.name, recipe, in_order=in_order)


def train_here(
    base: Path, data: Path, out: Path, report: Quiet | None = None, **changes: Any
) -> dict[str, Any]:
    from finetune_assets.models.planning.hardware import this_machine

    return train(request(base, data, out, **changes), this_machine(), report or Quiet())


class Cut(BaseException):
    """Ends a training as a kill would, in this process."""


def cutting(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The function, which cuts the training off when it is called for the n-th time."""
    calls = 0

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Cut
        return function(*given, **named)

    return counted


def adapter(out: Path) -> bytes:
    return (out / "adapter_model.safetensors").read_bytes()


@dataclass
class Running:
    """A training in a process of its own."""

    out: Path
    root: Path
    """Its checkpoints."""
    process: BaseProcess

    @property
    def said(self) -> str:
        return (self.out / "log").read_text() if (self.out / "log").exists() else ""

    def wait_for(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not reached():
            assert self.process.is_alive(), self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def wait_until_said(self, text: str) -> None:
        self.wait_for(lambda: text in self.said)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def code(self) -> int | None:
        """Exit code; the negative number of the signal that ended it."""
        self.process.join(SECONDS)
        return self.process.exitcode

    def finish(self) -> dict[str, Any]:
        assert self.code() == 0, self.said
        return json.loads((self.out / "statistics.json").read_text())


def start(
    base: Path, data: Path, out: Path, spoil: Callable[[], None] | None = None, **changes: Any
) -> Running:
    """Start a training.

    Args:
        spoil: called in the process before; a function of a module.
    """
    asked = request(base, data, out, **changes)
    (out / "log").unlink(missing_ok=True)
    process = START.Process(target=_train, args=(asked, dict(os.environ), spoil))
    process.start()
    return Running(out, checkpoints.folder(asked.fingerprint), process)


def _train(asked: Request, environment: dict[str, str], spoil: Callable[[], None] | None) -> None:
    from finetune_assets.models.planning.hardware import this_machine

    os.environ.update(environment)
    with (asked.out / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if spoil:
        spoil()
    try:
        statistics = train(asked, this_machine(), Noting())
    except Exception:
        traceback.print_exc()
        raise
    (asked.out / "statistics.json").write_text(json.dumps(statistics))


def at(place: str, count: int, number: signal.Signals) -> Callable[[], None]:
    """A `spoil` by which the process gets a signal when it comes to a place for the n-th time.

    Args:
        place: `module:name` of a function.
    """
    return partial(_signal_at, place, count, number)


def _signal_at(place: str, count: int, number: signal.Signals) -> None:
    import importlib

    module, _, name = place.partition(":")
    owner, reached = importlib.import_module(module), 0
    function = getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal reached
        reached += 1
        if reached == count:
            os.kill(os.getpid(), number)
        return function(*given, **named)

    setattr(owner, name, counted)
