"""transformers' Trainer with our batches, loss, validation loss and checkpoints."""

import math
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.kernels.heap import HeapTrimmer
from finetune_assets.models.kernels.loss import Batch, collate, model_of, nll_of, supervised_nll
from finetune_assets.models.kernels.types import Model
from finetune_assets.models.planning import ranks
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.tokenization.contexts import Contexts
from finetune_assets.models.training import order
from finetune_assets.models.training.arguments import arguments
from finetune_assets.models.training.engine import Engine, require_isolation
from finetune_assets.models.training.guards import GradientGuard
from finetune_assets.models.training.progress import Continuing, Progress
from finetune_assets.models.training.request import Attempt, CheckpointSink
from finetune_assets.models.training.watch import Watcher
from finetune_assets.storage import checkpoints


class SupervisedTrainer(Trainer):
    """A Trainer that learns from supervised tokens and resumes to the same bytes.

    It depends on one minor version of transformers, to which it is pinned: it overrides
    `_get_train_sampler`, `_init_training_state`, `_run_epoch`, `_get_grad_norm` and
    `_save_checkpoint`, and sets `_n_gpu` of the arguments; `progress.py` sets `_tr_loss` and
    `_globalstep_last_logged` and calls `_maybe_log_save_evaluate`; `attempt.py` calls
    `_load_best_model`.
    """

    loss_is_scaled_for_ga = True
    control: TrainerControl
    model: Model

    def __init__(
        self,
        attempt: Attempt,
        engine: Engine,
        contexts: dict[str, Contexts],
        *,
        pad_token_id: int,
        progress: Progress,
        watcher: Watcher,
        sink: CheckpointSink | None,
    ) -> None:
        self.attempt, self.engine = attempt, engine
        self.recipe, self.hardware = attempt.request.training, attempt.hardware
        self.contexts, self.in_order = contexts, attempt.request.in_order
        self.pad_token_id, self.micro_batch = pad_token_id, attempt.schedule.micro_batch
        self.root, self.watcher, self.sink = attempt.root, watcher, sink
        self.divided = ranks.divides(self.recipe)
        """Weights are spread over several processes."""
        self.asked_to_stop: Callable[[], bool] = lambda: False
        """Says whether this process has been asked to stop."""
        dealt_at_once = self.micro_batch * ranks.count() if ranks.count() > 1 else 1
        self.rounds = order.FullRounds(contexts["train"], dealt_at_once)
        self.continuing = Continuing(self, progress)
        super().__init__(
            model=engine.model,
            args=_training_arguments(attempt, fused=engine.fused),
            train_dataset=self.rounds,
            eval_dataset=contexts["validation"],
            data_collator=partial(collate, engine.model, pad_token_id=pad_token_id),
            callbacks=[Guard(self, engine.model), watcher, HeapTrimmer(), self.continuing],
        )
        if plugin := getattr(self.accelerator.state, "fsdp_plugin", None):
            plugin.mixed_precision_policy = _casts(self.recipe, self.hardware)
        # Tokens with loss are counted over a step's batches, so that each token weighs the same.
        self.model_accepts_loss_kwargs = True
        self.unsound = torch.zeros((), dtype=torch.bool, device=self.args.device)
        """Whether a loss or a gradient was not finite; reading it waits for the device."""
        if patience := self.recipe.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(patience, self.recipe.early_stopping_threshold))
        self.remove_callback(PrinterCallback)

    def create_accelerator_and_postprocess(self) -> None:
        """Let accelerate divide a model over CPU processes too: torch can, it asks for GPUs."""
        if self.divided and self.hardware.device == "cpu":
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int]:
        return order.make_sampler(self.rounds, self.in_order, self.args.data_seed)

    def get_train_dataloader(self) -> DataLoader:
        """Return batches of the training contexts, whose order changes from epoch to epoch."""
        loader = super().get_train_dataloader()
        batches: Any = loader.batch_sampler
        dealt = getattr(batches, "batch_sampler", None)
        if set_epoch := getattr(getattr(dealt, "sampler", None), "set_epoch", None):
            # Where a resumed run skips batches, only this reaches the sampler.
            batches.set_epoch = set_epoch
        return loader

    def _init_training_state(self, max_steps: int, *how: object) -> tuple[int, int]:
        begun = super()._init_training_state(max_steps, *how)
        # How often to report and to save may have changed since.
        self.state.compute_steps(self.args, max_steps)
        return begun

    def _run_epoch(self, *given: object, **named: object) -> None:
        # A run that is over, and was cut off before it was saved, would learn one step more.
        if not self.control.should_training_stop:
            super()._run_epoch(*given, **named)

    def compute_loss_context_manager(self) -> ExitStack:
        """Stop here if asked: before each forward pass, also those of a validation loss.

        Several processes, which must agree, stop in training before a step.
        """
        several = ranks.count() > 1
        asked = self.all_asked_to_stop if several else self.asked_to_stop
        if not (several and self.model.training) and asked():
            self.leave()
        return super().compute_loss_context_manager()

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Count the batch's tokens, and compute its loss and gradients."""
        self.watcher.tokens_seen += int(inputs["tokens"])
        with _offload_activations(self.recipe):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return this batch's part of the mean loss of a step's tokens (nats)."""
        nll, count = supervised_nll(model, inputs, fused=not self.divided)
        # Gradients are averaged over devices, each of which has its part of the sum.
        share = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss = nll / (num_items_in_batch or count) * share
        self.unsound = self.unsound | ~torch.isfinite(loss.detach())
        return loss

    def _get_grad_norm(
        self, model: torch.nn.Module, grad_norm: Tensor | float | None = None
    ) -> Tensor | float | None:
        norm = super()._get_grad_norm(model, grad_norm)
        # The loss scaling of fp16 skips such a step by itself.
        if norm is not None and not self.divided and self.accelerator.scaler is None:
            self.unsound = self.unsound | ~torch.isfinite(torch.as_tensor(norm))
        return norm

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Compute and report the validation loss; the best is saved, and it must be finite."""
        loss = self._validation_loss()
        if not math.isfinite(loss):
            raise UserError(
                f"step {self.state.global_step}",
                f"the validation loss is not finite ({loss})",
                "lower `training.learning_rate`; the last complete checkpoint is kept",
            )
        result = {"eval_loss": loss}
        self.log(dict(result))
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, result)
        best = self.state.best_metric
        if self.recipe.load_best_model_at_end and (best is None or loss < best):
            self.control.should_save = True
        return result

    def _validation_loss(self) -> float:
        """Return the mean over tokens; each process takes every n-th context."""
        accelerator, contexts = self.accelerator, self.contexts["validation"]
        places = sorted(range(len(contexts)), key=lambda i: -int(contexts.lengths[i]))
        mine = [contexts[i] for i in places[accelerator.process_index :: accelerator.num_processes]]
        if len(mine) < math.ceil(len(contexts) / accelerator.num_processes):
            # Where weights are divided, a forward pass needs every process.
            mine.append(order.without_loss(contexts[0]))
        total, count = nll_of(
            self.model_wrapped if self.divided else model_of(self.model),
            mine,
            batch_size=self.micro_batch,
            pad_token_id=self.pad_token_id,
            autocast=self.compute_loss_context_manager,
            fused=not self.divided,
        )
        mine_only = torch.tensor([[total, count]], dtype=torch.float64, device=accelerator.device)
        sums = accelerator.gather(mine_only).sum(0)
        return float(sums[0] / sums[1])

    def _save_checkpoint(self, model: torch.nn.Module, trial: object = None) -> None:
        newest = self.root / f"checkpoint-{self.state.global_step}"
        if (newest / checkpoints.COMPLETE).exists():  # what is complete is not written over
            return
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        progress = Progress.of(self)
        if self.args.should_save:
            progress.write(newest)
            checkpoints.mark_complete(newest)
            best = self.state.best_global_step if self.recipe.load_best_model_at_end else None
            removed = checkpoints.prune(self.root, self.recipe.save_total_limit, best)
            if self.sink is not None:
                self.sink.put(newest.name, removed)
        self.accelerator.wait_for_everyone()  # all see the same checkpoints

    def all_asked_to_stop(self) -> bool:
        """Return whether any process was asked, which all learn at once."""
        asked = torch.tensor(int(self.asked_to_stop()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum"))

    def leave(self) -> None:
        """Write a checkpoint of the last whole step and end the process."""
        if self.state.global_step:
            self.continuing.rewind()
            self._save_checkpoint(self.model)
        raise SystemExit(128 + signal.SIGTERM)


class Guard(TrainerCallback):
    """Stops before a step that would spoil the weights, and has the last step judged too."""

    def __init__(self, trainer: SupervisedTrainer, model: Model) -> None:
        self.trainer = trainer
        self.gradients = GradientGuard(model) if ranks.keeps_gradients(trainer.recipe) else None

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Probe a divided model, which no process can do alone before it is put together."""
        trainer = self.trainer
        if trainer.divided and trainer.recipe.packing:
            model = model_of(trainer.model_wrapped)
            require_isolation(model, trainer.contexts["train"], trainer.hardware.dtype)

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Stop several processes together."""
        if ranks.count() > 1 and self.trainer.all_asked_to_stop():
            self.trainer.leave()

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        """Refuse a loss or a gradient that is not finite, or that does not reach everything."""
        if bool(self.trainer.unsound):
            raise UserError(
                f"step {self.trainer.state.global_step + 1}",
                "the loss or its gradient is not finite",
                "lower `training.learning_rate` or `training.max_grad_norm`; the weights of "
                "the last complete checkpoint are kept",
            )
        if self.gradients is not None:
            self.gradients.check()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Ask for a validation loss of the last step, where the interval does not end on it."""
        trainer = self.trainer
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_evaluate = trainer.control.should_save = True


def _training_arguments(attempt: Attempt, *, fused: bool) -> TrainingArguments:
    training = attempt.request.training
    # DeepSpeed computes in the dtype that it is told, whoever could do so by itself.
    fused = fused and ranks.keeps_gradients(training)
    given = arguments(training, attempt.hardware, attempt.schedule, attempt.root, fused=fused)
    made = TrainingArguments(**given)
    # One process means one device, also on a machine with more.
    made._n_gpu = min(made.n_gpu, 1)
    return made


def _casts(training: Training, hardware: Hardware) -> MixedPrecisionPolicy | None:
    """Say how FSDP casts whole weights; an adapter stays float32, and autocast computes."""
    if training.method == "lora" or hardware.dtype == "float32":
        return None
    return MixedPrecisionPolicy(hardware.torch_dtype(), reduce_dtype=torch.float32)


def _offload_activations(training: Training) -> AbstractContextManager[object]:
    """Do as TRL's `activation_offloading`: what the backward pass needs waits in host memory."""
    if training.arguments.get("activation_offloading"):
        return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
    return nullcontext()
