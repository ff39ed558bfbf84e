"""What is done about memory beside the tensors: gaps in the heap, and Python's own objects.

Workers keep what they free, as clearing new pages costs a tenth of a step (`ALLOCATOR` in
`launch/process_group.py`). Rows of changing lengths leave gaps in it, which grow step by step.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GROWTH = 1.25
"""Resident memory, as a multiple of what the first step took, or the first one since gaps were last
given back, from which they are given back. Against the very first alone, a run of steps that need a
little more would give back after each of them, and clear every page again: a fifth of its time."""


def giving_back() -> Any:
    """A callback; it does nothing where the C library is not glibc."""
    from transformers import TrainerCallback

    class GivingBack(TrainerCallback):
        limit = 0.0

        def on_step_end(self, args, state, control, **_):
            import psutil

            resident = psutil.Process().memory_info().rss
            if not self.limit:
                self.limit = resident * GROWTH
            elif resident > self.limit:
                trim()
                self.limit = 0.0

    return GivingBack()


def trim() -> None:
    """Give every free page of the heap back to the system."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def loading() -> Iterator[None]:
    """While open, libraries and a model are loaded: a million objects, which are there to stay.

    The garbage collector would go through them again and again as they become more, for a fifth of
    the time that loading takes; it does not, and leaves them alone afterwards.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
