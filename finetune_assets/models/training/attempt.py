"""One attempt at training: from the newest checkpoint to the saved adapter."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from finetune_assets.errors import UserError
from finetune_assets.models.adapters.initial import FROM_BASE
from finetune_assets.models.adapters.saving import INITIAL, gathered, save_adapter
from finetune_assets.models.kernels.heap import HeapTrimmer
from finetune_assets.models.planning import ranks
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.schedule import Schedule
from finetune_assets.models.tokenization.contexts import Contexts
from finetune_assets.models.training.engine import Engine, build, require_isolation
from finetune_assets.models.training.progress import Progress
from finetune_assets.models.training.samples import answering
from finetune_assets.models.training.task import Copying, Report, Request, Task
from finetune_assets.models.training.trainer import Setup, make_trainer
from finetune_assets.models.training.watch import Memory, histories, watcher
from finetune_assets.processes.garbage import set_aside_garbage
from finetune_assets.storage import checkpoints

SPLITS = ("train", "validation")


def attempt(
    task: Task,
    report: Report,
    copier: Copying | None,
    stopping: Callable[[Any], AbstractContextManager[None]],
) -> dict[str, Any]:
    """Go on from the newest checkpoint to the end; one process, or one of several.

    Args:
        stopping: a block around training, in which a trainer learns that it is to stop.
    """
    try:
        return _attempt(task, report, copier, stopping)
    finally:
        gc.unfreeze()  # what `set_aside_garbage` kept may be garbage now


def _attempt(
    task: Task,
    report: Report,
    copier: Copying | None,
    stopping: Callable[[Any], AbstractContextManager[None]],
) -> dict[str, Any]:
    request, hardware, root = task.request, task.hardware, task.root
    began = time.monotonic()
    contexts = {name: Contexts.open(request.training_set, name) for name in SPLITS}
    resume = checkpoints.latest(root)
    with set_aside_garbage():
        trainer, setup, kernels = _prepare(task, contexts, report, copier, resume)
    started = time.monotonic()
    with stopping(trainer):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    seconds = time.monotonic() - started
    _take_best(trainer, setup)
    _save(trainer, request, root)
    state = trainer.state
    return {
        **histories(state.log_history),
        "best_validation_loss": state.best_metric,
        "best_step": state.best_global_step,
        "steps": state.global_step,
        "epochs": round(state.epoch or 0.0, 3),
        "resumed_from_step": checkpoints.step_of(resume) if resume else None,
        "seconds_training": round(seconds, 2),
        "seconds_loading": round(started - began, 2),
        "tokens_trained": trainer.tokens_seen * ranks.count(),
        "tokens_per_second": round(trainer.tokens_seen * ranks.count() / max(seconds, 1e-9), 1),
        "tokens_per_epoch": int(contexts["train"].lengths.sum()),
        "trainable_parameters": sum(p.numel() for p in setup.model.parameters() if p.requires_grad),
        "schedule": vars(task.schedule),
        "hardware": hardware.record(),
        "kernels": kernels,
        "processes": ranks.count(),
        **{k: v for k, v in Memory().read().items() if k.endswith("peak_gb")},
    }


def _prepare(
    task: Task,
    contexts: dict[str, Contexts],
    report: Report,
    copier: Copying | None,
    resume: Path | None,
) -> tuple[Any, Setup, dict[str, Any]]:
    """A trainer that is ready to start, what it was made from, and the kernels that were chosen."""
    import torch
    from transformers import AutoTokenizer

    request, hardware, schedule, root = task.request, task.hardware, task.schedule, task.root
    training = request.training
    torch.set_num_threads(hardware.threads)
    tokenizer = AutoTokenizer.from_pretrained(request.base)
    torch.manual_seed(training.seed)
    with _first_one_first(training.lora.init in FROM_BASE):  # its first matrices are kept
        engine = _engine(request, hardware, contexts["train"], schedule, root)
    if training.packing and not ranks.divides(training):
        require_isolation(engine.model, contexts["train"], hardware.dtype)
    report.log(_beginning(resume, schedule, hardware, engine))
    setup = Setup(
        model=engine.model,
        pad_token_id=_pad(tokenizer),
        contexts=contexts,
        training=training,
        hardware=hardware,
        schedule=schedule,
        root=root,
        in_order=request.in_order,
        fused=engine.fused,
        copier=copier,
    )
    # Divided weights answer where every process asks.
    asks = ranks.index() == 0 or ranks.divides(training)
    answer = answering(engine.model, tokenizer, training) if asks else None
    watch = watcher(report, Memory(), ranks.count(), answer)
    trainer = make_trainer(setup, [watch, HeapTrimmer()])
    watch.trainer = trainer
    if resume is not None:
        trainer.progress = Progress.read(resume)
    return trainer, setup, engine.kernels


def _engine(
    request: Request, hardware: Hardware, contexts: Contexts, schedule: Schedule, root: Path
) -> Engine:
    training = request.training
    wanted = training.gradient_checkpointing
    chosen = request.checkpointing if wanted == "auto" else wanted
    of_a_step = schedule.micro_batch * schedule.accumulation * ranks.count()
    return build(
        request.base,
        training,
        hardware,
        root / INITIAL,
        tokens=round(float(contexts.lengths.mean()) * of_a_step * schedule.total_steps),
        checkpointing=hardware.gradient_checkpointing if chosen is None else chosen,
    )


def _pad(tokenizer: Any) -> int:
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


def _beginning(resume: Path | None, schedule: Schedule, hardware: Hardware, engine: Engine) -> str:
    how = f"{schedule.micro_batch} x {schedule.accumulation}"
    how += f" x {ranks.count()} contexts a step" if ranks.count() > 1 else " contexts a step"
    if resume is not None:
        step = checkpoints.step_of(resume)
        return f"resuming from step {step} of {schedule.total_steps}, {how}"
    chosen = ", ".join(f"{key} {value}" for key, value in engine.kernels.items())
    return f"training {schedule.total_steps} steps on {hardware.name}, {how}; {chosen}"


def _take_best(trainer: Any, setup: Setup) -> None:
    """Load the checkpoint of the lowest validation loss, where it is not the last step."""
    state = trainer.state
    best = state.best_global_step
    if setup.training.load_best_model_at_end and best and best != state.global_step:
        found = setup.root / f"checkpoint-{best}"
        if not (found / checkpoints.COMPLETE).exists():
            raise UserError(
                str(found),
                "the best checkpoint is gone",
                f"remove {setup.root} and run again: training begins with its first step",
            )
        # The path in the state is that of the machine on which the run began.
        state.best_model_checkpoint = str(found)
        trainer._load_best_model()


def _save(trainer: Any, request: Request, root: Path) -> None:
    weights = gathered(trainer.model, request.training)
    if trainer.is_world_process_zero():
        save_adapter(
            trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False),
            request.out,
            request.training,
            request.base,
            root / INITIAL,
            weights,
        )


@contextmanager
def _first_one_first(needed: bool) -> Iterator[None]:
    """Where needed, the other processes begin the block when the first one has ended it."""
    if needed and ranks.count() > 1:
        from accelerate import PartialState

        with PartialState().main_process_first():
            yield
    else:
        yield
