"""Progress of long work over rows, as log lines with an estimate of what is left."""

import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 5.0


class RowProgress:
    """Called with the number of rows done; says so every few seconds."""

    def __init__(self, log: Callable[[str], None], total: int) -> None:
        self._log, self._total = log, total
        self._started = self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        """Log how far the work is, unless it was said just before."""
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES or not done:
            return
        self._last = now
        rate = done / (now - self._started)
        left = (self._total - done) / rate
        self._log(f"{done} of {self._total} rows, {rate:.0f} rows/s, about {left:.0f} s left")
