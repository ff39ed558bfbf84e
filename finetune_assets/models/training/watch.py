"""What people see of a running training: speed, memory, what is left, losses, answers."""

import math
import time
from typing import Any

from finetune_assets.models.training.task import Report

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


def watcher(report: Report, memory: "Memory", processes: int, answer: Any | None) -> Any:
    """A callback that reports.

    Args:
        processes: that share the work; speed is that of all.
        answer: answers the declared prompts, at each validation loss; None where there are none.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        trainer: Any = None

        def on_train_begin(self, args, state, control, **_):
            self.started, self.first_step = time.monotonic(), state.global_step
            self.said, self.pause = self.started, FIRST_PAUSE
            self.evaluating = 0.0
            self.last: dict[str, float] = {}
            for entry in state.log_history:  # of a run that goes on: a kill may have lost them
                if values := named(entry):
                    report.metrics(values, int(entry["step"]))

        def on_log(self, args, state, control, logs=None, **_):
            values = named(logs or {})
            if not state.is_world_process_zero or not values:
                return
            self.last |= values
            values |= {"tokens_per_second": self.speed(), **memory.read()}
            report.metrics(values, state.global_step)
            now = time.monotonic()
            if "validation_loss" in values or now - self.said >= self.pause:
                self.said, self.pause = now, min(self.pause * 1.25, LONGEST_PAUSE)
                self.tell(state, values)

        def speed(self) -> float:
            """Real tokens per second of training since this process began it."""
            elapsed = time.monotonic() - self.started
            return round(self.trainer.tokens_seen * processes / max(elapsed, 1e-9), 1)

        def tell(self, state, values) -> None:
            done = state.global_step - self.first_step
            left = (state.max_steps - state.global_step) / max(done, 1)
            seconds = left * (time.monotonic() - self.started)
            shown = {"step": state.global_step, "steps": state.max_steps, **self.last}
            shown |= {k: v for k, v in values.items() if k not in self.last}
            shown["seconds_left"] = round(seconds)
            report.observe(shown)
            report.log(line(shown))

        def on_train_end(self, args, state, control, **_):
            if state.is_world_process_zero and state.global_step < state.max_steps:
                report.log(
                    f"stopped early after step {state.global_step} of {state.max_steps}: the "
                    f"lowest validation loss, {state.best_metric:.4g}, is that of step "
                    f"{state.best_global_step}"
                )

        def on_evaluate(self, args, state, control, **_):
            if answer is not None:
                rows = answer(state.global_step)
                state.log_history.append({"step": state.global_step, "samples": rows})
                for row in rows:
                    report.log(f"step {row['step']}: {row['prompt']!r} -> {row['answer']!r}")

    return Watcher()


def named(logs: dict[str, Any]) -> dict[str, float]:
    """What people see of what transformers logs."""
    return {NAMES[k]: float(v) for k, v in logs.items() if k in NAMES}


def line(shown: dict[str, Any]) -> str:
    """`step 12/140: train_loss 1.2, ...` for people."""
    parts = [
        f"{name} {shown[key]:.4g}"
        for key, name in (
            ("train_loss", "loss"),
            ("validation_loss", "validation loss"),
            ("learning_rate", "learning rate"),
        )
        if key in shown
    ]
    parts.append(f"{shown['tokens_per_second']:.0f} tokens/s")
    parts.append(f"memory {shown['process_gb']:.2f} GB, peak {shown['process_peak_gb']:.2f}")
    if "device_used_gb" in shown:
        parts.append(
            f"device {shown['device_used_gb']:.2f} GB used, {shown['device_free_gb']:.2f} free, "
            f"peak {shown['device_peak_gb']:.2f}"
        )
    parts.append(f"{duration(shown['seconds_left'])} left")
    return f"step {shown['step']}/{shown['steps']}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: the two that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Memory:
    """Of this process and its device, in GB of 10^9 bytes."""

    def read(self) -> dict[str, float]:
        import resource

        import psutil
        import torch

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


def histories(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Curves of (step, value) and answers, from transformers' log of a whole run."""
    kinds = {"train_loss": "loss", "validation_loss": "eval_loss", "learning_rate": "learning_rate"}
    curves: dict[str, Any] = {
        name: [(int(e["step"]), e[key]) for e in log if key in e and math.isfinite(e[key])]
        for name, key in kinds.items()
    }
    return curves | {"samples": [row for e in log for row in e.get("samples", ())]}
