"""The task `adapters`: training with validation loss, best checkpoint, and resumption."""

import gc
from dataclasses import replace
from typing import Any

import torch

from finetune_assets.models.planning import ranks
from finetune_assets.models.planning.choices import precision
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.schedule import make_schedule
from finetune_assets.models.runs import recovery
from finetune_assets.models.tokenization.contexts import Contexts
from finetune_assets.models.training.request import Attempt, CheckpointSink, Listener, Request
from finetune_assets.processes.garbage import set_aside_garbage
from finetune_assets.storage import checkpoints
from finetune_assets.storage.checkpoints import AttemptNote


def train(request: Request, hardware: Hardware, listener: Listener) -> dict[str, Any]:
    """Train, resume where an earlier attempt was cut off, and return statistics.

    A UserError says that the loss is not finite, a matrix gets no gradient, packed documents see
    each other, or memory or disk do not suffice; a TERM ends in SystemExit, after a checkpoint.
    """
    training, processes = request.training, ranks.wanted(request.training, hardware)
    hardware = replace(
        hardware, dtype=precision(training, hardware), threads=max(1, hardware.threads // processes)
    )
    root = checkpoints.folder(request.fingerprint)
    if count := checkpoints.fetch(request.fingerprint):
        listener.log(f"checkpoints fetched from {checkpoints.remote(request.fingerprint)}: {count}")
    contexts = len(Contexts.open(request.training_set, "train"))
    planned = make_schedule(contexts, training, hardware, devices=processes)
    recovery.forget_another_schedule(root, planned, listener.log)
    schedule = recovery.first_schedule(planned, root, listener.log)
    with (
        recovery.explain_full_disk(root),
        checkpoints.copy_to_store(root, request.fingerprint, listener.log) as sink,
    ):
        while True:
            AttemptNote(schedule.micro_batch, recovery.out_of_memory_kills()).write(root)
            attempt = Attempt(request, hardware, schedule, root)
            try:
                return _run(attempt, processes, listener, sink)
            except Exception as error:
                if not recovery.ran_out_of_memory(error):
                    raise
                schedule = recovery.halve(schedule)
            gc.collect()
            torch.cuda.empty_cache()
            listener.log(
                f"out of memory: {schedule.micro_batch} x {schedule.accumulation} contexts a step "
                "from now on, the same effective batch; going on from the last checkpoint"
            )


def _run(
    attempt: Attempt, processes: int, listener: Listener, sink: CheckpointSink | None
) -> dict[str, Any]:
    """Make an attempt, and import no more than it needs: a launcher needs no transformers."""
    if processes > 1:
        from finetune_assets.models.runs.distributed import run_processes

        return run_processes(attempt, processes, listener, sink)
    with set_aside_garbage():
        from finetune_assets.models.training.attempt import run_attempt

    return run_attempt(attempt, listener, sink, recovery.stop_on_term())
