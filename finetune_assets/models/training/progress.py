"""What transformers leaves out of a checkpoint, so that a resumed run goes on as if uncut."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """Of a run, after a whole step."""

    loss: float = 0.0
    """Sum of the steps' training losses since the last report (nats per token)."""
    reported: int = 0
    """Step of that report."""
    validating: bool = False
    """The validation loss of this step is still to be computed."""
    over: bool = False
    """This was the last step, by its number or by early stopping."""

    @classmethod
    def of(cls, trainer: Any) -> "Progress":
        """Of all processes, each of which must ask."""
        control = trainer.control
        return cls(
            loss=float(trainer.accelerator.gather(trainer._tr_loss).mean()),
            reported=trainer._globalstep_last_logged,
            validating=control.should_evaluate,
            over=control.should_training_stop,
        )

    def write(self, checkpoint: Path) -> None:
        (checkpoint / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, checkpoint: Path) -> "Progress":
        return cls(**json.loads((checkpoint / FILE).read_text()))


def continuing() -> Any:
    """A callback that takes a trainer's `progress` up again, and can rewind a step that has begun.

    A step that is not finished has drawn random numbers and added to the loss; a checkpoint in the
    middle of it must not contain that.
    """
    import torch
    from transformers import TrainerCallback

    class Continuing(TrainerCallback):
        trainer: Any = None

        def on_train_begin(self, args, state, control, **_):
            trainer, progress = self.trainer, self.trainer.progress
            trainer._tr_loss += progress.loss
            trainer._globalstep_last_logged = progress.reported
            control.should_training_stop = progress.over
            self.remember()
            if progress.validating:
                control.should_evaluate = True
                model, now = trainer.model_wrapped, time.time()
                trainer._maybe_log_save_evaluate(
                    trainer._tr_loss, None, model, None, state.epoch, None, now
                )

        def on_step_end(self, *_, **__):
            self.remember()

        def on_log(self, *_, **__):
            self.remember()

        def remember(self) -> None:
            self.loss = self.trainer._tr_loss.clone()
            self.random = torch.random.get_rng_state()
            if torch.cuda.is_available():
                self.random_cuda = torch.cuda.get_rng_state()

        def rewind(self) -> None:
            self.trainer._tr_loss.copy_(self.loss)
            torch.random.set_rng_state(self.random)
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(self.random_cuda)

    return Continuing()
