"""A function over items, in threads or in processes: results in order, few of them waiting."""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar, cast

from finetune_assets.errors import UserError
from finetune_assets.processes.identity import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 3
"""Items a process that are taken before the first of their results is; this bounds memory."""


def cores() -> int:
    """Return how many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the results of `work` in the order of the items.

    Threads help because polars and numpy compute outside of Python's lock.
    """
    workers = cores()
    with ThreadPoolExecutor(workers) as pool:
        yield from _in_order(lambda item: pool.submit(work, item), items, 2 * workers)


def map_in_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    *,
    where: str,
    task: str,
    preload: Sequence[str] = (),
) -> Generator[Result]:
    """Yield the results of `work`, a function that can be pickled, in the order of the items.

    Args:
        processes: below 2, everything is done in this process.
        where: the dataset file, named where a process ended abruptly.
        task: what the processes do, in words for errors: "cleaned rows".
        preload: modules that a server imports once for all processes, which it then forks. They
            must start no threads, which would be gone in the fork with the locks they held.
    """
    if processes < 2:
        yield from map(work, items)
        return
    with _one_thread_each():
        context = get_context("forkserver" if preload else "spawn")
        if preload:
            context.set_forkserver_preload(list(preload))
        pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(work,))
        run = cast(Callable[[Item], Result], _run)
        try:
            yield from _in_order(lambda item: pool.submit(run, item), items, AHEAD * processes)
        except BrokenProcessPool as error:
            cause = f"a process that {task} ended abruptly, most likely for want of memory"
            raise UserError(where, cause, "free memory and run again") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    submit: Callable[[Item], Future[Result]], items: Iterable[Item], most: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_work: Callable[..., object]
"""What this process does, given once: it may be large."""


def _begin(work: Callable[..., object]) -> None:
    """Take the work; leave Ctrl-C and TERM to the parent, and do not outlive it."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    _work = work


def _run(item: object) -> object:
    return _work(item)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that are started meanwhile not fight for cores with threads of their own."""
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
