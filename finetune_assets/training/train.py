"""The task `adapters`: QLoRA training with validation loss, best checkpoint and resumption."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.tokenization.contexts import Contexts
from finetune_assets.training import checkpoints
from finetune_assets.training.hardware import Hardware
from finetune_assets.training.loading import adapter_in_float32, add_adapter, load_base
from finetune_assets.training.loss import collate, mean_loss, supervised_nll
from finetune_assets.training.saving import INITIAL, save_adapter
from finetune_assets.training.schedule import Schedule, plan

Progress = Callable[[str], None]
Metrics = Callable[[dict[str, float], int], None]


@dataclass
class Curves:
    """Losses by optimizer step; mean nats per supervised token."""

    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)


def train(
    base: Path,
    training_set: Path,
    out: Path,
    *,
    fingerprint: str,
    training: Training,
    hardware: Hardware,
    progress: Progress,
    metrics: Metrics,
) -> dict[str, Any]:
    """Train an adapter into `out` (PEFT format) and return statistics.

    Args:
        base: folder with weights and tokenizer.
        training_set: folder with the contexts of the splits `train` and `validation`.
        fingerprint: names the checkpoints, so that only the same run resumes them.

    Raises:
        UserError: the loss is not finite.
        SystemExit: a TERM arrived; a checkpoint was written first.
    """
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(hardware.threads)
    tokenizer = AutoTokenizer.from_pretrained(base)
    contexts = {name: Contexts.open(training_set, name) for name in SPLITS}
    schedule = plan(len(contexts["train"]), training, hardware)
    root = checkpoints.folder(fingerprint)
    resume = checkpoints.latest(root)
    progress(
        f"resuming from step {resume.name.split('-')[1]} of {schedule.total_steps}"
        if resume
        else f"training {schedule.total_steps} steps on {hardware.name}, {hardware.dtype}, "
        f"{schedule.micro_batch} x {schedule.accumulation} contexts a step"
    )
    torch.manual_seed(training.seed)
    initial = root / INITIAL
    model = add_adapter(load_base(base, hardware, training), training, base, initial)
    trainer = _trainer(
        model, tokenizer, contexts, training, hardware, schedule, root, progress, metrics
    )
    adapter_in_float32(model)
    started = time.monotonic()
    with _stop_on_term(trainer):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    save_adapter(model, out, training, base, initial)
    tokens = int(contexts["train"].lengths.sum())
    curves = _curves(trainer.state.log_history)
    return {
        "train_loss": curves.train,
        "validation_loss": curves.validation,
        "best_validation_loss": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "resumed_from_step": int(resume.name.split("-")[1]) if resume else None,
        "seconds_training": round(time.monotonic() - started, 1),
        "tokens_per_epoch": tokens,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "schedule": vars(schedule),
        "hardware": hardware.record(),
    }


SPLITS = ("train", "validation")


def _arguments(
    training: Training, hardware: Hardware, schedule: Schedule, root: Path
) -> dict[str, Any]:
    """SFTConfig keywords; dataset preparation is off because the contexts are ready."""
    return {
        "output_dir": str(root),
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": schedule.micro_batch,
        "per_device_eval_batch_size": schedule.micro_batch,
        "gradient_accumulation_steps": schedule.accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": hardware.optimizer,
        "use_cpu": hardware.device == "cpu",
        "bf16": hardware.dtype == "bfloat16",
        "fp16": hardware.dtype == "float16",
        "gradient_checkpointing": hardware.gradient_checkpointing,
        "use_liger_kernel": hardware.use_liger_kernel,
        "max_length": None,
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "eval_strategy": "steps",
        "eval_steps": schedule.eval_steps,
        "save_strategy": "steps",
        "save_steps": schedule.save_steps,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": hardware.device == "cuda",
        "seed": training.seed,
    }


def _trainer(
    model: Any,
    tokenizer: Any,
    contexts: dict[str, Contexts],
    training: Training,
    hardware: Hardware,
    schedule: Schedule,
    root: Path,
    progress: Progress,
    metrics: Metrics,
) -> Any:
    """TRL's trainer with the loss over supervised positions only and an exact validation loss."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    class Trainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            nll, tokens = supervised_nll(model, inputs)
            return nll / (tokens if num_items_in_batch is None else num_items_in_batch)

        def evaluate(self, *_, **__) -> dict[str, float]:
            loss = mean_loss(
                self.model,
                contexts["validation"],
                batch_size=schedule.micro_batch,
                pad_token_id=pad,
                autocast=self.compute_loss_context_manager,
            )
            result = {"eval_loss": loss}
            self.log(dict(result))
            trainer: Any = self
            trainer.control = self.callback_handler.on_evaluate(
                self.args, self.state, trainer.control, result
            )
            return result

    datasets = {name: Dataset.from_list([vars(c) for c in contexts[name]]) for name in SPLITS}
    trainer = Trainer(
        model=model,
        args=SFTConfig(**_arguments(training, hardware, schedule, root)),
        processing_class=tokenizer,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        data_collator=partial(collate, pad_token_id=pad),
        callbacks=[_watcher(progress, metrics)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _watcher(progress: Progress, metrics: Metrics) -> Any:
    """Report what happens, mark checkpoints complete, and stop on a loss that is not finite."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        started, first_step, said = 0.0, 0, 0.0

        def on_train_begin(self, args, state, control, **_):
            self.started, self.first_step = time.monotonic(), state.global_step

        def on_log(self, args, state, control, logs=None, **_):
            values = {_NAMES[k]: float(v) for k, v in (logs or {}).items() if k in _NAMES}
            if not all(math.isfinite(v) for v in values.values()):
                raise UserError(
                    f"step {state.global_step}",
                    f"the loss is not finite: {values}",
                    "lower `training.learning_rate`; the last complete checkpoint is kept",
                )
            metrics(values, state.global_step)
            elapsed, done = time.monotonic() - self.started, state.global_step - self.first_step
            if "validation_loss" in values or time.monotonic() - self.said > 10:
                self.said = time.monotonic()
                left = elapsed / max(done, 1) * (state.max_steps - state.global_step)
                shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
                progress(f"step {state.global_step}/{state.max_steps}: {shown}, {left:.0f} s left")

        def on_step_end(self, args, state, control, **_):
            # The last step is judged too, also where the interval does not end on it.
            if state.global_step >= state.max_steps:
                control.should_evaluate = control.should_save = True

        def on_save(self, args, state, control, **_):
            checkpoints.mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Watcher()


_NAMES = {
    "loss": "train_loss",
    "eval_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}


class _stop_on_term:
    """On TERM, finish the optimizer step, write a checkpoint, then leave with 143."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        outer = self
        self.asked = False

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                control.should_save |= outer.asked
                control.should_training_stop |= outer.asked

            def on_save(self, args, state, control, **_):
                if outer.asked:
                    raise SystemExit(128 + signal.SIGTERM)

        trainer.add_callback(Stop())

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)


def _curves(history: list[dict[str, float]]) -> Curves:
    curves = Curves()
    for entry in history:
        if "loss" in entry:
            curves.train.append((int(entry["step"]), entry["loss"]))
        if "eval_loss" in entry:
            curves.validation.append((int(entry["step"]), entry["eval_loss"]))
    return curves
