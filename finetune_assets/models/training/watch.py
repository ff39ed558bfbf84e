"""What people see of a running training: speed, memory, what is left, losses, answers."""

import math
import resource
import time
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerState

from finetune_assets.models.planning.duration import duration_text
from finetune_assets.models.training.request import Listener
from finetune_assets.models.training.samples import PromptAnswerer

Log = Mapping[str, Any]
"""What transformers logs at a time."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""Seconds between reports; each is a quarter longer than the one before, so that a short run is
seen to move and a long one does not fill the event log."""

NAMES = {
    "loss": "train_loss",
    "eval_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}
"""What transformers logs, by the names that people see."""
CURVES = ("loss", "eval_loss", "learning_rate")
"""What the statistics of a run show over its steps."""


class Watcher(TrainerCallback):
    """Tells a listener how a training goes, and has the declared prompts answered.

    Speed is that of all `processes`; `answerer` is asked at each validation loss.
    """

    def __init__(self, listener: Listener, processes: int, answerer: PromptAnswerer | None) -> None:
        self.listener, self.processes, self.answerer = listener, processes, answerer
        self.tokens_seen = 0
        """Real tokens that this process has learned from; the trainer counts them."""
        self.last: dict[str, float] = {}
        """The newest losses, which a report without new ones repeats."""

    def on_train_begin(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Start the clock, and report again what a kill may have lost."""
        self.started, self.first_step = time.monotonic(), state.global_step
        self.said, self.pause = self.started, FIRST_PAUSE
        for entry in state.log_history:
            if values := named(entry):
                self.listener.metrics(values, int(entry["step"]))

    def on_log(
        self, args: object, state: TrainerState, *_: object, logs: Log | None = None, **__: object
    ) -> None:
        """Report numbers at once, and tell people of them now and then."""
        values = named(logs or {})
        if not state.is_world_process_zero or not values:
            return
        self.last |= values
        now = time.monotonic()
        # Real tokens, since this process began to train.
        speed = self.tokens_seen * self.processes / max(now - self.started, 1e-9)
        values |= {"tokens_per_second": round(speed, 1), **read_memory()}
        self.listener.metrics(values, state.global_step)
        if "validation_loss" in values or now - self.said >= self.pause:
            self.said, self.pause = now, min(self.pause * 1.25, LONGEST_PAUSE)
            self._tell(state, values)

    def on_train_end(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Say so where training ends before its last step."""
        if state.is_world_process_zero and state.global_step < state.max_steps:
            self.listener.log(
                f"stopped early after step {state.global_step} of {state.max_steps}: the "
                f"lowest validation loss, {state.best_metric:.4g}, is that of step "
                f"{state.best_global_step}"
            )

    def on_evaluate(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Have the prompts answered."""
        if self.answerer is not None:
            samples = self.answerer.answer(state.global_step)
            entry: dict[str, Any] = {"step": state.global_step, "samples": samples}
            state.log_history.append(entry)
            for each in samples:
                self.listener.log(f"step {each['step']}: {each['prompt']!r} -> {each['answer']!r}")

    def _tell(self, state: TrainerState, values: dict[str, float]) -> None:
        done = state.global_step - self.first_step
        left = (state.max_steps - state.global_step) / max(done, 1)
        seconds = left * (time.monotonic() - self.started)
        shown = {"step": state.global_step, "steps": state.max_steps, **self.last}
        shown |= {k: v for k, v in values.items() if k not in self.last}
        shown["seconds_left"] = round(seconds)
        self.listener.observe(shown)
        self.listener.log(line(shown))


def named(logs: Log) -> dict[str, float]:
    """Return what people see of what transformers logs."""
    return {NAMES[k]: float(v) for k, v in logs.items() if k in NAMES}


def line(shown: Mapping[str, float]) -> str:
    """Return `step 12/140: loss 1.2, ...` for people."""
    names = {"train_loss": "loss", "validation_loss": "validation loss"}
    names["learning_rate"] = "learning rate"
    parts = [f"{name} {shown[key]:.4g}" for key, name in names.items() if key in shown]
    parts.append(f"{shown['tokens_per_second']:.0f} tokens/s")
    parts.append(f"memory {shown['process_gb']:.2f} GB, peak {shown['process_peak_gb']:.2f}")
    if "device_used_gb" in shown:
        parts.append(
            f"device {shown['device_used_gb']:.2f} GB used, {shown['device_free_gb']:.2f} free, "
            f"peak {shown['device_peak_gb']:.2f}"
        )
    parts.append(f"{duration_text(shown['seconds_left'])} left")
    return f"step {shown['step']}/{shown['steps']}: {', '.join(parts)}"


def read_memory() -> dict[str, float]:
    """Return the memory of this process and its device, in GB of 10^9 bytes."""
    # ru_maxrss is in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    values = {"process_gb": psutil.Process().memory_info().rss, "process_peak_gb": peak}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        values |= {
            "device_used_gb": total - free,
            "device_free_gb": free,
            "device_peak_gb": torch.cuda.max_memory_allocated(),
        }
    return {name: round(value / 1e9, 3) for name, value in values.items()}


def histories(log: Iterable[Log]) -> dict[str, list[Any]]:
    """Return curves of (step, value) and answers, from transformers' log of a whole run."""
    curves: dict[str, list[Any]] = {
        NAMES[key]: [(int(e["step"]), e[key]) for e in log if key in e and math.isfinite(e[key])]
        for key in CURVES
    }
    return curves | {"samples": [sample for e in log for sample in e.get("samples", ())]}
