"""The gradient reaches everything that is trained, or training stops at once.

A layer that gets no gradient makes no error: the loss still falls by the others, and the adapter is
quietly worse.
"""

import torch

from finetune_assets.errors import UserError

PATIENCE = 50
"""Optimizer steps within which each expert of a mixture must have had a gradient, since a batch
need not pass through all of them; a gradient that is not finite has as many, as fp16's loss scaling
brings some about in its first steps and skips them."""
SHOWN = 3
"""How many matrices the error names."""


class GradientGuard:
    """Judges the gradients before each of the first optimizer steps; it soon costs nothing.

    It serves one process or DDP: frameworks that divide gradients over devices hide them from it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.steps = 0
        self.waiting = {n: p for n, p in model.named_parameters() if p.requires_grad}
        """Trainable matrices that have had no finite gradient other than zero yet."""
        # `A` has a gradient only after `B`, which begins at zero, has moved. With warmup from a
        # learning rate of zero that takes more than one step.
        self._partners = {n: b for n in self.waiting if (b := self._partner(n)) is not None}

    def _partner(self, name: str) -> torch.nn.Parameter | None:
        """Return the matrix that stands between the loss and this one, and is zero at first."""
        for first, second in ((".lora_A.", ".lora_B."), ("_embedding_B.", "_embedding_A.")):
            if first in name:
                return self.waiting.get(name.replace(first, second))
        return None

    @property
    def done(self) -> bool:
        """Every matrix has had a gradient."""
        return not self.waiting

    def check(self) -> None:
        """Judge the gradients of the coming step; a UserError names matrices that got none."""
        if self.done:
            return
        self.steps += 1
        # Those whose partner is still zero.
        shut = {n for n, b in self._partners.items() if n in self.waiting and not bool(b.any())}
        missing = []
        for name, norm in self._norms().items():
            if 0 < norm < float("inf"):
                del self.waiting[name]
            elif name not in shut and (
                self.steps >= PATIENCE or (norm == 0 and ".experts." not in name)
            ):
                missing.append(name)
        if missing:
            self._refuse(missing)

    def _norms(self) -> dict[str, float]:
        """Return the norm of each waiting gradient, in one pass; 0 where there is none at all."""
        found = {n: p.grad for n, p in self.waiting.items() if p.grad is not None}
        norms = torch._foreach_norm(list(found.values()), float("inf")) if found else []
        values = torch.stack([norm.float() for norm in norms]).tolist() if found else []
        return dict.fromkeys(self.waiting, 0.0) | dict(zip(found, values, strict=True))

    def _refuse(self, missing: list[str]) -> None:
        after = "1 step" if self.steps == 1 else f"{self.steps} steps"
        shown = ", ".join(name.removeprefix("base_model.model.") for name in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UserError(
            "training",
            f"after {after} no finite gradient has reached {len(missing)} trained matrices: "
            f"{shown}{more}",
            "leave out of `training.lora.targets` the layers that text does not pass through "
            "(`method: full` needs a base without such); if it does pass through these, write "
            "`gradient_checkpointing: false` and `torch_compile: false`, which can cut them off; "
            "where the loss rose before, lower `training.learning_rate`",
        )
