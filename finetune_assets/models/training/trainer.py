"""transformers' Trainer with our batches, loss, validation loss and checkpoints."""

import math
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.kernels.loss import collate, model_of, nll_of, supervised_nll
from finetune_assets.models.planning import ranks
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.schedule import Schedule
from finetune_assets.models.tokenization.contexts import Contexts
from finetune_assets.models.training import order
from finetune_assets.models.training.arguments import arguments
from finetune_assets.models.training.engine import require_isolation
from finetune_assets.models.training.guards import GradientGuard
from finetune_assets.models.training.progress import Progress, continuing
from finetune_assets.models.training.task import Copying
from finetune_assets.storage import checkpoints


@dataclass
class Setup:
    """What a trainer is made from."""

    model: Any
    pad_token_id: int
    contexts: dict[str, Contexts]
    training: Training
    hardware: Hardware
    schedule: Schedule
    root: Path
    """Folder of the checkpoints."""
    in_order: bool
    """Contexts are learned in their order, in every epoch."""
    fused: bool
    """Layers compute in the hardware's dtype without autocast."""
    copier: Copying | None

    @property
    def divided(self) -> bool:
        return ranks.divides(self.training)


def make_trainer(setup: Setup, callbacks: list[Any]) -> Any:
    """A Trainer; `asked_to_stop` may be replaced by what knows of a signal."""
    import torch
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

    training, guard, continued = setup.training, _guarding(setup), continuing()
    several = ranks.count() > 1
    dealt_at_once = setup.schedule.micro_batch * ranks.count() if several else 1
    rounds = order.FullRounds(setup.contexts["train"], dealt_at_once)

    class OurTrainer(Trainer):
        loss_is_scaled_for_ga = True
        asked_to_stop: Callable[[], bool] = staticmethod(lambda: False)
        control: Any
        progress = Progress()
        """Where the run was cut off."""
        unsound: Any
        """Whether a loss or a gradient was not finite; a tensor, as reading one waits for the
        device."""
        tokens_seen = 0
        """Real tokens of this process since it began."""

        def create_accelerator_and_postprocess(self):
            if setup.divided and setup.hardware.device == "cpu":
                _divide_on_cpus()
            super().create_accelerator_and_postprocess()

        def _get_train_sampler(self, train_dataset=None):
            return order.sampler(rounds, setup.in_order, self.args.data_seed)

        def get_train_dataloader(self):
            loader = super().get_train_dataloader()
            dealt: Any = getattr(loader.batch_sampler, "batch_sampler", None)
            if hasattr(getattr(dealt, "sampler", None), "set_epoch"):
                # Where a resumed run skips batches, only this reaches the sampler.
                loader.batch_sampler.set_epoch = dealt.sampler.set_epoch
            return loader

        def _init_training_state(self, max_steps, *how):
            begun = super()._init_training_state(max_steps, *how)
            # How often to report and to save may have changed since.
            self.state.compute_steps(self.args, max_steps)
            return begun

        def _run_epoch(self, **how):
            # A run that is over, and was cut off before it was saved, would learn one step more.
            if not self.control.should_training_stop:
                super()._run_epoch(**how)

        def compute_loss_context_manager(self):
            # Before each forward pass, also those of a validation loss; several processes, which
            # must agree, stop in training before a step.
            if several:
                asked = not self.model.training and self.all_asked_to_stop()
            else:
                asked = self.asked_to_stop()
            if asked:
                self.leave()
            return super().compute_loss_context_manager()

        def training_step(self, model, inputs, num_items_in_batch=None):
            self.tokens_seen += int(inputs["tokens"])
            with _offloaded(training):
                return super().training_step(model, inputs, num_items_in_batch)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            nll, count = supervised_nll(model, inputs, fused=not setup.divided)
            # Gradients are averaged over devices, each of which has its part of the sum.
            share = 1 if num_items_in_batch is None else self.accelerator.num_processes
            loss = nll / (num_items_in_batch or count) * share
            self.unsound = self.unsound | ~torch.isfinite(loss.detach())
            return loss

        def _get_grad_norm(self, model, grad_norm=None):
            norm = super()._get_grad_norm(model, grad_norm)
            # The loss scaling of fp16 skips such a step by itself.
            if norm is not None and not setup.divided and self.accelerator.scaler is None:
                self.unsound = self.unsound | ~torch.isfinite(torch.as_tensor(norm))
            return norm

        def evaluate(self, *_, **__) -> dict[str, float]:
            result = {"eval_loss": _validation_loss(self, setup)}
            self.log(dict(result))
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, result
            )
            best = self.state.best_metric
            if training.load_best_model_at_end and (best is None or result["eval_loss"] < best):
                self.control.should_save = True
            return result

        def _save_checkpoint(self, model, trial=None):
            if self.newest_is_saved():  # what is complete is not written over
                return
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            progress = Progress.of(self)
            if self.args.should_save:
                progress.write(setup.root / f"checkpoint-{self.state.global_step}")
                _settle(self.state, setup)
            self.accelerator.wait_for_everyone()  # all see the same checkpoints

        def all_asked_to_stop(self) -> bool:
            """Whether any process was asked, of which all learn at once."""
            asked = torch.tensor(int(self.asked_to_stop()), device=self.accelerator.device)
            return bool(self.accelerator.reduce(asked, "sum"))

        def leave(self) -> None:
            """Write a checkpoint of the last whole step and end the process."""
            if self.state.global_step:
                continued.rewind()
                self._save_checkpoint(self.model)
            raise SystemExit(128 + signal.SIGTERM)

        def newest_is_saved(self) -> bool:
            name = f"checkpoint-{self.state.global_step}"
            return (setup.root / name / checkpoints.COMPLETE).exists()

    # DeepSpeed computes in the dtype that it is told, whoever could do so by itself.
    fused = setup.fused and ranks.keeps_gradients(training)
    given = TrainingArguments(
        **arguments(training, setup.hardware, setup.schedule, setup.root, fused=fused)
    )
    # One process means one device, also on a machine with more.
    given._n_gpu = min(given.n_gpu, 1)
    trainer = OurTrainer(
        model=setup.model,
        args=given,
        train_dataset=rounds,
        eval_dataset=setup.contexts["validation"],
        data_collator=partial(collate, setup.model, pad_token_id=setup.pad_token_id),
        callbacks=[guard, *callbacks, continued],
    )
    guard.trainer = continued.trainer = trainer
    if plugin := getattr(trainer.accelerator.state, "fsdp_plugin", None):
        plugin.mixed_precision_policy = _casts(training, setup.hardware)
    # Tokens with loss are counted over a step's batches, so that each token weighs the same.
    trainer.model_accepts_loss_kwargs = True
    trainer.unsound = torch.zeros((), dtype=torch.bool, device=trainer.args.device)
    if training.early_stopping_patience:
        trainer.add_callback(
            EarlyStoppingCallback(
                training.early_stopping_patience, training.early_stopping_threshold
            )
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _divide_on_cpus() -> None:
    """Let accelerate divide a model over CPU processes too: torch can, accelerate asks for GPUs."""
    from accelerate import DistributedType, PartialState

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _casts(training: Training, hardware: Hardware) -> Any:
    """Of weights that FSDP puts together; an adapter stays float32, and autocast computes."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if training.method == "lora" or hardware.dtype == "float32":
        return None
    return MixedPrecisionPolicy(hardware.torch_dtype(), reduce_dtype=torch.float32)


def _offloaded(training: Training) -> Any:
    """`activation_offloading` of TRL: what the backward pass needs waits in the host's memory."""
    import torch

    if training.arguments.get("activation_offloading"):
        return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
    return nullcontext()


def _validation_loss(trainer: Any, setup: Setup) -> float:
    """Mean over tokens; each process takes every n-th context."""
    import torch

    accelerator, contexts = trainer.accelerator, setup.contexts["validation"]
    places = sorted(range(len(contexts)), key=lambda i: -int(contexts.lengths[i]))
    mine = [contexts[i] for i in places[accelerator.process_index :: accelerator.num_processes]]
    if len(mine) < math.ceil(len(contexts) / accelerator.num_processes):
        # Where weights are divided, a forward pass needs every process.
        mine.append(order.without_loss(contexts[0]))
    total, count = nll_of(
        trainer.model_wrapped if setup.divided else model_of(trainer.model),
        mine,
        batch_size=setup.schedule.micro_batch,
        pad_token_id=setup.pad_token_id,
        autocast=trainer.compute_loss_context_manager,
        fused=not setup.divided,
    )
    mine_only = torch.tensor([[total, count]], dtype=torch.float64, device=accelerator.device)
    sums = accelerator.gather(mine_only).sum(0)
    return float(sums[0] / sums[1])


def _settle(state: Any, setup: Setup) -> None:
    """Mark the newest checkpoint complete, drop old ones, and send it to the store."""
    newest = setup.root / f"checkpoint-{state.global_step}"
    checkpoints.mark_complete(newest)
    best = state.best_global_step if setup.training.load_best_model_at_end else None
    removed = checkpoints.prune(setup.root, setup.training.save_total_limit, best)
    if setup.copier is not None:
        setup.copier.put(newest.name, removed)


def _guarding(setup: Setup) -> Any:
    """Stop before a step that would spoil the weights, and judge the last step too."""
    from transformers import TrainerCallback

    guard = GradientGuard(setup.model) if ranks.keeps_gradients(setup.training) else None

    class Guard(TrainerCallback):
        trainer: Any = None

        def on_train_begin(self, args, state, control, **_):
            if setup.divided and setup.training.packing:  # which no process can see alone
                model = model_of(self.trainer.model_wrapped)
                require_isolation(model, setup.contexts["train"], setup.hardware.dtype)

        def on_step_begin(self, args, state, control, **_):
            if ranks.count() > 1 and self.trainer.all_asked_to_stop():
                self.trainer.leave()

        def on_pre_optimizer_step(self, args, state, control, **_):
            if bool(self.trainer.unsound):
                raise UserError(
                    f"step {state.global_step + 1}",
                    "the loss or its gradient is not finite",
                    "lower `training.learning_rate` or `training.max_grad_norm`; the weights of "
                    "the last complete checkpoint are kept",
                )
            if guard is not None:
                guard.check()

        def on_step_end(self, args, state, control, **_):
            # The last step is judged too, also where the interval does not end on it.
            if state.global_step >= state.max_steps:
                control.should_evaluate = control.should_save = True

        def on_log(self, args, state, control, logs=None, **_):
            loss = (logs or {}).get("eval_loss", 0.0)
            if not math.isfinite(loss):
                raise UserError(
                    f"step {state.global_step}",
                    f"the validation loss is not finite ({loss})",
                    "lower `training.learning_rate`; the last complete checkpoint is kept",
                )

    return Guard()
