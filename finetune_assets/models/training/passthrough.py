"""`training.arguments`, judged by the SFTConfig that they are passed to."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from trl import SFTConfig

from finetune_assets.catalog.arguments import Arguments
from finetune_assets.catalog.explain import said
from finetune_assets.errors import UserError


class Unplaced(SFTConfig):
    """An SFTConfig that looks for no device: the process may be one of several, with its own."""

    @property
    def device(self) -> torch.device:
        """The CPU, which is always there."""
        return torch.device("cpu")


def require_valid(arguments: Mapping[str, object], where: str) -> Arguments:
    """Return arguments as SFTConfig takes them, numbers as numbers.

    Keys, types and ranges are those of `catalog/arguments.py`; then SFTConfig itself is asked. It
    takes a second to import, so whoever has no arguments does without this module. An unknown key,
    one that the platform sets, and a value that is refused are UserErrors about `where`.
    """
    try:
        valid = TypeAdapter(Arguments).validate_python(dict(arguments))
    except ValidationError as error:
        found = [said(("training", "arguments", *item["loc"]), [item]) for item in error.errors()]
        raise UserError(
            where, "; ".join(cause for cause, _ in found), "; ".join(remedy for _, remedy in found)
        ) from error
    values: dict[str, Any] = dict(valid)
    if values and (problem := _refusal(values)):
        blamed = [k for k in values if not _refusal({n: v for n, v in values.items() if n != k})]
        named = ", ".join(f"'training.arguments.{k}' is {values[k]!r}" for k in blamed or values)
        raise UserError(where, f"{named}: SFTConfig refuses it: {problem}", "mend the value")
    return valid


def _refusal(values: Mapping[str, Any]) -> str | None:
    """Return what SFTConfig has against values; None if nothing."""
    try:
        Unplaced(output_dir="unused", bf16=False, activation_checkpointing=False, **values)
    except (TypeError, ValueError) as error:
        return str(error)
    return None
