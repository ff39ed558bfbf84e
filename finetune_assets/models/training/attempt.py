"""One attempt at training: from the newest checkpoint to the saved adapter."""

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoTokenizer

from finetune_assets.errors import UserError
from finetune_assets.models.adapters.saving import INITIAL, gather, save_adapter
from finetune_assets.models.planning import ranks
from finetune_assets.models.planning.choices import FROM_BASE
from finetune_assets.models.tokenization.contexts import Contexts
from finetune_assets.models.training.engine import Engine, build, require_isolation
from finetune_assets.models.training.progress import Progress
from finetune_assets.models.training.request import Attempt, CheckpointSink, Listener
from finetune_assets.models.training.samples import PromptAnswerer
from finetune_assets.models.training.trainer import SupervisedTrainer
from finetune_assets.models.training.watch import Watcher, histories, read_memory
from finetune_assets.processes.garbage import set_aside_garbage
from finetune_assets.storage import checkpoints

Stopping = AbstractContextManager[Callable[[], bool]]
"""A block around training; yields what says whether this process is to stop."""


def run_attempt(
    attempt: Attempt, listener: Listener, sink: CheckpointSink | None, stopping: Stopping
) -> dict[str, Any]:
    """Go on from the newest checkpoint to the end, alone or as one of several; return statistics.

    Raises:
        UserError: training would go wrong, or the best checkpoint is gone.
        SystemExit: the process was asked to stop; a checkpoint was written first.
    """
    began = time.monotonic()
    try:
        resume = checkpoints.latest(attempt.root)
        with set_aside_garbage():
            trainer = _prepare(attempt, listener, sink, resume)
        started = time.monotonic()
        with stopping as trainer.asked_to_stop:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        seconds = time.monotonic() - started
        _take_best(trainer)
        _save(trainer)
        return _statistics(trainer, resume, seconds, started - began)
    finally:
        gc.unfreeze()  # what `set_aside_garbage` kept may be garbage now


def _statistics(
    trainer: SupervisedTrainer, resume: Path | None, seconds: float, seconds_loading: float
) -> dict[str, Any]:
    state, tokens = trainer.state, trainer.watcher.tokens_seen * ranks.count()
    attempt, engine = trainer.attempt, trainer.engine
    return {
        **histories(state.log_history),
        "best_validation_loss": state.best_metric,
        "best_step": state.best_global_step,
        "steps": state.global_step,
        "epochs": round(state.epoch or 0.0, 3),
        "resumed_from_step": checkpoints.step_of(resume) if resume else None,
        "seconds_training": round(seconds, 2),
        "seconds_loading": round(seconds_loading, 2),
        "tokens_trained": tokens,
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "tokens_per_epoch": int(trainer.contexts["train"].lengths.sum()),
        "trainable_parameters": sum(
            p.numel() for p in engine.model.parameters() if p.requires_grad
        ),
        "schedule": vars(attempt.schedule),
        "hardware": attempt.hardware.record(),
        "kernels": engine.kernels,
        "processes": ranks.count(),
        **{k: v for k, v in read_memory().items() if k.endswith("peak_gb")},
    }


def _prepare(
    attempt: Attempt, listener: Listener, sink: CheckpointSink | None, resume: Path | None
) -> SupervisedTrainer:
    """Return a trainer that is ready to start."""
    request, hardware, training = attempt.request, attempt.hardware, attempt.request.training
    contexts = {n: Contexts.open(request.training_set, n) for n in ("train", "validation")}
    torch.set_num_threads(hardware.threads)
    tokenizer = AutoTokenizer.from_pretrained(request.base)
    torch.manual_seed(training.seed)
    # The others read the first matrices that the first process keeps.
    alone = training.lora.init not in FROM_BASE or ranks.count() == 1
    with nullcontext() if alone else PartialState().main_process_first():
        engine = _engine(attempt, contexts["train"])
    if training.packing and not ranks.divides(training):
        require_isolation(engine.model, contexts["train"], hardware.dtype)
    listener.log(_beginning(attempt, engine, resume))
    # Divided weights answer where every process asks.
    asks = ranks.index() == 0 or ranks.divides(training)
    answerer = None
    if asks and training.sample_prompts:
        answerer = PromptAnswerer(engine.model, tokenizer, training)
    pad = tokenizer.pad_token_id
    return SupervisedTrainer(
        attempt,
        engine,
        contexts,
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        progress=Progress.read(resume) if resume else Progress(),
        watcher=Watcher(listener, ranks.count(), answerer),
        sink=sink,
    )


def _engine(attempt: Attempt, contexts: Contexts) -> Engine:
    request, schedule = attempt.request, attempt.schedule
    wanted = request.training.gradient_checkpointing
    chosen = request.checkpointing if wanted == "auto" else wanted
    of_a_step = schedule.micro_batch * schedule.accumulation * ranks.count()
    return build(
        request.base,
        request.training,
        attempt.hardware,
        attempt.root / INITIAL,
        tokens=round(float(contexts.lengths.mean()) * of_a_step * schedule.total_steps),
        checkpointing=attempt.hardware.gradient_checkpointing if chosen is None else chosen,
    )


def _beginning(attempt: Attempt, engine: Engine, resume: Path | None) -> str:
    """Return the line that says what begins."""
    schedule = attempt.schedule
    how = f"{schedule.micro_batch} x {schedule.accumulation}"
    how += f" x {ranks.count()} contexts a step" if ranks.count() > 1 else " contexts a step"
    if resume is not None:
        step = checkpoints.step_of(resume)
        return f"resuming from step {step} of {schedule.total_steps}, {how}"
    chosen = ", ".join(f"{key} {value}" for key, value in engine.kernels.items())
    return f"training {schedule.total_steps} steps on {attempt.hardware.name}, {how}; {chosen}"


def _take_best(trainer: SupervisedTrainer) -> None:
    """Load the checkpoint of the lowest validation loss, where it is not the last step."""
    state = trainer.state
    best = state.best_global_step
    if trainer.recipe.load_best_model_at_end and best and best != state.global_step:
        found = trainer.root / f"checkpoint-{best}"
        if not (found / checkpoints.COMPLETE).exists():
            raise UserError(
                str(found),
                "the best checkpoint is gone",
                f"remove {trainer.root} and run again: training begins with its first step",
            )
        # The path in the state is that of the machine on which the run began.
        state.best_model_checkpoint = str(found)
        trainer._load_best_model()


def _save(trainer: SupervisedTrainer) -> None:
    request = trainer.attempt.request
    weights = gather(trainer.model, request.training)
    if trainer.is_world_process_zero():
        save_adapter(
            trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False),
            request.out,
            request.training,
            request.base,
            trainer.root / INITIAL,
            weights,
        )
