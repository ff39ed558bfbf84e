"""A heap without large gaps.

Workers keep what they free, as clearing new pages costs a tenth of a step (`ALLOCATOR` in
`launch/process_group.py`). Rows of changing lengths leave gaps in it, which grow step by step.
"""

import ctypes
import sys

import psutil
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

GROWTH = 1.25
"""Resident memory, as a multiple of what the first step took, or the first one since gaps were last
given back, from which they are given back. Against the very first alone, a run of steps that need a
little more would give back after each of them, and clear every page again: a fifth of its time."""


class HeapTrimmer(TrainerCallback):
    """A callback that trims the heap when it has grown by GROWTH."""

    limit = 0.0
    """Resident bytes above which the heap is trimmed; 0 until a step has been seen."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Trim the heap if the step that has just ended took more than the limit."""
        resident = psutil.Process().memory_info().rss
        if not self.limit:
            self.limit = resident * GROWTH
        elif resident > self.limit:
            trim()
            self.limit = 0.0


def trim() -> None:
    """Give every free page of the heap back to the system; do nothing without glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
