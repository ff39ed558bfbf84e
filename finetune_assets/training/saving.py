"""Writing what was trained as an artefact that stock PEFT or transformers loads."""

from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training

INITIAL = "initial.safetensors"
"""Beside the checkpoints: the matrices from which `pissa` and `loftq` began."""


def save_adapter(
    model: Any, out: Path, training: Training, base: Path, initial: Path | None = None
) -> None:
    """Write the trained adapter (PEFT format) or, after full tuning, the model into `out`.

    Args:
        base: folder of the original base, to which the adapter applies.
        initial: the file that `add_adapter` was given.
    """
    model.save_pretrained(out)
