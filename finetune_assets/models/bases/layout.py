"""How the files of a base name and divide the tensors of its model.

Mostly a file holds a tensor under the model's own name. Some publishers leave out the first part of
every name, some names are older than transformers' present ones, and a mixture's experts are stored
one by one while the model stacks them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from finetune_assets.models.bases.weights import tensor_files


@dataclass(frozen=True)
class Layout:
    """The names of tensors in a model's files, and in the model."""

    model: PreTrainedModel
    """The model on the meta device: names and shapes without weights."""
    files: dict[str, Path]
    """The shard of every stored tensor."""

    @classmethod
    def of(cls, folder: Path) -> "Layout":
        """Read the layout of a model folder."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        return cls(model, tensor_files(folder))

    @cached_property
    def shapes(self) -> dict[str, torch.Tensor]:
        """The model's tensors, without their values, by its own names."""
        return self.model.state_dict()

    @cached_property
    def names(self) -> dict[str, str]:
        """The model's name for each stored tensor, or for that of which it is a part."""
        own = {stored: self._own_name(stored) for stored in self.files}
        found = {stored: name for stored, name in own.items() if name in self.shapes}
        for name in self.shapes.keys() - found.values():
            parts = self._parts(name, self.shapes[name])
            found |= {stored: name for stored in parts if stored in self.files}
        return found

    def divide(
        self, name: str, tensor: torch.Tensor, stored: Iterable[str]
    ) -> dict[str, torch.Tensor]:
        """Divide `tensor`, in the model's shape for `name`, among the names that are `stored`."""
        whole = [part for part in stored if self._own_name(part) == name]
        return dict.fromkeys(whole, tensor) if whole else self._parts(name, tensor)

    def stored_name(self, name: str) -> str:
        """Return the name in a file of a tensor that is stored in one piece."""
        return next(iter(self._parts(name, self.shapes[name])))

    def _own_name(self, stored: str) -> str:
        first = f"{self.model.base_model_prefix}."
        return first + stored if first + stored in self.shapes else stored

    def _parts(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """`tensor` as transformers would store it."""
        return revert_weight_conversion(self.model, {name: tensor})

    def is_transposed(self, module: str) -> bool:
        """Whether the weight of a module has the shape (in, out), as in GPT-2."""
        return isinstance(self.model.get_submodule(module), Conv1D)
