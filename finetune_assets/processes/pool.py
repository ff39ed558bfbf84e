"""A function over batches by as many processes as there are cores, with results in order."""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from finetune_assets.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 3
"""Batches a process that are made before the first of them is taken; this bounds memory."""

PRELOADED = ["finetune_assets.models.tokenization.batch", "transformers.utils.chat_template_utils"]
"""Imported once and shared by all processes, which takes a second and 100 MB."""

_work: Callable[[Any], Any]


def mapped(
    work: Callable[[T], R], batches: Iterable[T], processes: int, where: str
) -> Generator[R]:
    """Results of `work`, a function that can be pickled, in the order of the batches.

    Args:
        processes: below 2, everything is done in this process.

    Raises:
        UserError: a process ended abruptly; or what `work` raises.
    """
    if processes < 2:
        yield from map(work, batches)
        return
    with _one_thread_each():
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(work,))
        try:
            yield from _in_order(pool, batches, processes * AHEAD)
        except BrokenProcessPool as error:
            raise UserError(
                where,
                "a process that tokenised rows ended abruptly, most likely for want of memory",
                "free memory and run again",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_order(pool: ProcessPoolExecutor, batches: Iterable[Any], most: int) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for batch in batches:
        waiting.append(pool.submit(_run, batch))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin(work: Callable[[Any], Any]) -> None:
    """Leave Ctrl-C and TERM to the parent; ask Linux for a KILL when it is gone."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    _work = work


def _run(batch: Any) -> Any:
    return _work(batch)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Started meanwhile, processes do not fight for cores with threads of their own."""
    single = {"TOKENIZERS_PARALLELISM": "false"}
    single |= dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    before = {name: os.environ.get(name) for name in single}
    os.environ.update(single)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
