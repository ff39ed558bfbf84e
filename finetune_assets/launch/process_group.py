"""A Dagster Pipes client whose worker is a process group: what it starts ends with it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.pipes.context import PipesMessageHandler
from dagster_pipes import PipesMessage, PipesParams
from pydantic import JsonValue

from finetune_assets.errors import UserError
from finetune_assets.launch.reporter import OBSERVATION
from finetune_assets.storage.job import PARENT

GRACE_SECONDS = 60.0
"""From TERM to KILL: room to finish an optimizer step and write a checkpoint."""
TAIL_LINES = 25
"""Lines of stderr shown when a worker fails."""

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Settings of glibc for workers: activations of megabytes are taken from memory that the process
keeps. By default each is given back to the system when it is freed, and every page is cleared anew:
a tenth of a step. The forward and the backward pass, which are two threads, share one heap, of
pages of 2 MB where the system has them: another tenth, and no memory that is free in one heap and
missing in the other."""

THREADS = {"GOMP_SPINCOUNT": "10000"}
"""Settings of OpenMP for workers: idle threads look for work some 0.1 ms before they sleep. Those
that sleep at once make a step a fifth longer, as it is thousands of short operations; those that
never sleep make it ten times as long as soon as another process wants the cores."""


Message = Mapping[str, Any]
"""Custom Pipes message: what a worker reports, as JSON values."""


class WorkerFailed(Exception):
    """Raised when a worker ended with a non-zero code; the message says what to do about it."""


class ProcessGroupClient:
    """Client that runs a command in a session of its own; its Pipes messages arrive live."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.grace_seconds = grace_seconds

    def run(
        self,
        context: dg.AssetExecutionContext,
        command: Sequence[str],
        extras: Mapping[str, object],
    ) -> None:
        """Run to the end; raise the UserError that the worker reports, or a WorkerFailed."""
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=ObservingReader(context),
            extras=dict(extras),
        ) as session:
            pipes = session.get_bootstrap_env_vars()
            process = subprocess.Popen(
                command,
                env={**ALLOCATOR, **THREADS, **os.environ, **pipes, PARENT: str(os.getpid())},
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            tail: deque[str] = deque(maxlen=TAIL_LINES)
            reader = threading.Thread(target=_forward, args=(process, tail), daemon=True)
            reader.start()
            try:
                code = process.wait()
            except (DagsterExecutionInterruptedError, KeyboardInterrupt):
                grace = f"{self.grace_seconds:.0f} s"
                context.log.info(f"stopping the worker: TERM, and KILL after {grace}")
                raise
            finally:
                self._end(process)
            reader.join(timeout=5)
        _raise_for(code, session.get_custom_messages(), tail)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Leave nothing of the group running."""
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=self.grace_seconds)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


class ObservingReader(dg.PipesTempFileMessageReader):
    """Reader that turns a worker's observations into events of the asset while it runs."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        super().__init__()
        self._context = context

    @contextlib.contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[PipesParams]:
        """Read messages in a thread until the block ends."""

        def handle(message: PipesMessage) -> None:
            payload = (message["params"] or {}).get("payload")
            if isinstance(payload, Mapping) and OBSERVATION in payload:
                self._observe(payload[OBSERVATION])
            else:
                passed_on(message)

        passed_on = handler.handle_message
        handler.handle_message = handle  # type: ignore[method-assign]
        with super().read_messages(handler) as params:
            yield params

    def _observe(self, values: Mapping[str, JsonValue]) -> None:
        asset, partition = self._context.asset_key, self._context.partition_key
        self._context.log_event(dg.AssetObservation(asset, partition=partition, metadata=values))


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _forward(process: subprocess.Popen[str], tail: deque[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)
        if "%|" not in line:  # a progress bar, of which one takes a screen
            tail.append(line)


def raise_reported(messages: Sequence[Message]) -> None:
    """Raise the UserError that a worker has reported among its custom messages, if it has."""
    for message in messages:
        if "error" in message:
            raise UserError(**message["error"])


def _raise_for(code: int, messages: Sequence[Message], tail: deque[str]) -> None:
    raise_reported(messages)
    if code == 0:
        return
    last = "".join(tail).strip() or "(nothing on stderr)"
    if code == -signal.SIGKILL:
        cause = "the worker was killed (kill -9, or the system ran out of memory)"
        remedy = (
            "run again: it goes on from the last checkpoint. If memory was the cause, lower "
            "`training.per_device_train_batch_size` or `training.max_length`"
        )
    else:
        cause = f"the worker ended with code {code}"
        remedy = "mend the cause shown above and run again: it goes on from the last checkpoint"
    raise WorkerFailed(f"{cause}. Its last lines:\n{last}\n  remedy: {remedy}")
