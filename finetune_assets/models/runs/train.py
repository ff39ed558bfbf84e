"""The task `adapters`: training with validation loss, best checkpoint, and resumption."""

import gc
from dataclasses import replace
from typing import Any

from finetune_assets.models.planning import ranks
from finetune_assets.models.planning.choices import precision
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.schedule import make_schedule
from finetune_assets.models.runs import recovery
from finetune_assets.models.runs.distributed import run
from finetune_assets.models.tokenization.contexts import Contexts
from finetune_assets.models.training.attempt import attempt
from finetune_assets.models.training.task import Report, Request, Task
from finetune_assets.storage import checkpoints
from finetune_assets.storage.checkpoints import Attempt


def train(request: Request, hardware: Hardware, report: Report) -> dict[str, Any]:
    """Train, resume where an earlier attempt was cut off, and return statistics.

    Raises:
        UserError: the loss is not finite, a matrix gets no gradient, packed documents see each
            other, or memory or disk do not suffice.
        SystemExit: a TERM arrived; a checkpoint was written first.
    """
    training, processes = request.training, ranks.wanted(request.training, hardware)
    hardware = replace(
        hardware,
        dtype=precision(training, hardware),
        threads=max(1, hardware.threads // processes),
    )
    root = checkpoints.folder(request.fingerprint)
    if count := checkpoints.fetch(request.fingerprint):
        report.log(f"checkpoints fetched from {checkpoints.remote(request.fingerprint)}: {count}")
    contexts = len(Contexts.open(request.training_set, "train"))
    planned = make_schedule(contexts, training, hardware, devices=processes)
    recovery.forget_another_schedule(root, planned, report.log)
    schedule = recovery.first_schedule(planned, root, report.log)
    with (
        recovery.disk_full_readably(root),
        checkpoints.copying(root, request.fingerprint, report.log) as copier,
    ):
        while True:
            Attempt(schedule.micro_batch, recovery.out_of_memory_kills()).write(root)
            task = Task(request, hardware, schedule, root)
            try:
                if processes > 1:
                    return run(task, processes, report, copier)
                return attempt(task, report, copier, recovery.stopping_on_term)
            except Exception as error:
                if not recovery.ran_out_of_memory(error):
                    raise
                schedule = recovery.halved(schedule)
            _free_memory()
            report.log(
                f"out of memory: {schedule.micro_batch} x {schedule.accumulation} contexts a step "
                "from now on, the same effective batch; going on from the last checkpoint"
            )


def _free_memory() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
