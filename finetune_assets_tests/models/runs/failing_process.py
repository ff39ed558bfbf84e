"""A training process of which the second has too little memory for two contexts, then fails."""

import os

import torch

from finetune_assets.errors import UserError
from finetune_assets.models.kernels.loss import Batch
from finetune_assets.models.runs import process
from finetune_assets.models.training import trainer

plain, calls = trainer.supervised_nll, 0


def failing(model: torch.nn.Module, batch: Batch, **how: bool) -> tuple[torch.Tensor, int]:
    """Fail at the third call in the second process, for want of memory as long as that helps."""
    global calls
    calls += 1
    if calls == 3 and os.environ["RANK"] == "1":
        if batch["tokens"] > 64:  # more than one context
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        raise UserError("here", "broken", "mend it")
    return plain(model, batch, **how)


if __name__ == "__main__":
    trainer.supervised_nll = failing
    process.main()
