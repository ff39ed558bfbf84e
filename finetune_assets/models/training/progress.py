"""What transformers leaves out of a checkpoint, so that a resumed run goes on as if uncut."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback

FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """Where a run is after a whole step."""

    loss: float = 0.0
    """Sum of the steps' training losses since the last report (nats per token)."""
    reported: int = 0
    """Step of that report."""
    validating: bool = False
    """The validation loss of this step is still to be computed."""
    over: bool = False
    """This was the last step, by its number or by early stopping."""

    @classmethod
    def of(cls, trainer: Trainer) -> "Progress":
        """Return the progress of all processes, each of which must ask."""
        control = trainer.control
        return cls(
            loss=float(trainer.accelerator.gather(trainer._tr_loss).mean()),
            reported=trainer._globalstep_last_logged,
            validating=control.should_evaluate,
            over=control.should_training_stop,
        )

    def write(self, checkpoint: Path) -> None:
        """Keep it in the folder of a checkpoint."""
        (checkpoint / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, checkpoint: Path) -> "Progress":
        """Return what the folder of a checkpoint keeps."""
        return cls(**json.loads((checkpoint / FILE).read_text()))


class Continuing(TrainerCallback):
    """Takes a run's progress up again, and can rewind a step that has begun.

    A step that is not finished has drawn random numbers and added to the loss; a checkpoint in the
    middle of it must not contain that.
    """

    def __init__(self, trainer: Trainer, progress: Progress) -> None:
        self.trainer, self.progress = trainer, progress

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Go on where the run was cut off, perhaps before its validation loss."""
        trainer, progress = self.trainer, self.progress
        trainer._tr_loss += progress.loss
        trainer._globalstep_last_logged = progress.reported
        trainer.control.should_training_stop = progress.over
        self._remember()
        if progress.validating:
            trainer.control.should_evaluate = True
            epoch, now = trainer.state.epoch, time.time()
            trainer._maybe_log_save_evaluate(
                trainer._tr_loss, None, trainer.model_wrapped, None, epoch, None, now
            )

    def _remember(self, *_: object, **__: object) -> None:
        self.loss = self.trainer._tr_loss.clone()
        self.random = torch.random.get_rng_state()
        if torch.cuda.is_available():
            self.random_cuda = torch.cuda.get_rng_state()

    on_step_end = on_log = _remember  # a report empties the sum of losses

    def rewind(self) -> None:
        """Bring loss and random numbers back to the end of the last whole step."""
        self.trainer._tr_loss.copy_(self.loss)
        torch.random.set_rng_state(self.random)
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(self.random_cuda)
