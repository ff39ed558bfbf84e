"""The garbage collector, kept from what is there to stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def set_aside_garbage() -> Iterator[None]:
    """Keep the garbage collector from objects made in this block, also afterwards.

    Libraries and models are a million objects, which are there to stay. The collector would go
    through them again and again as they become more, for a fifth of the time that loading takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
