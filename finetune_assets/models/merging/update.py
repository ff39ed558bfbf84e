"""The changes that an adapter makes to the tensors of its base, in float32."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from finetune_assets.errors import UserError
from finetune_assets.models.adapters.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from finetune_assets.models.bases.layout import Layout

PREFIX = "base_model.model."
"""What every name in an adapter file has before the model's own name."""


@dataclass
class Update:
    """An adapter, applied to one tensor of the model at a time."""

    layout: Layout
    """The layout of the base."""
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    used: set[str] = field(default_factory=set)
    """Adapter tensors that found the weight that they change."""

    @classmethod
    def read(cls, folder: Path, layout: Layout) -> "Update":
        """Read an adapter, which must be a LoRA of some kind."""
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        if config["peft_type"] != "LORA":
            cause = f"a {config['peft_type']} adapter cannot be merged"
            raise UserError(str(folder), cause, "train a LoRA")
        return cls(layout, config, load_file(folder / ADAPTER_WEIGHTS))

    def touches(self, name: str) -> bool:
        """Whether the adapter changes the model's tensor `name`."""
        module = PREFIX + name.rpartition(".")[0]
        return any(key.startswith(f"{module}.") for key in self.tensors)

    def apply(self, name: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Change the model's tensor `name` as the adapter says.

        `weights` are the parts in which it is stored, by their names, mostly one. The result has
        the same parts, changed, each in its own dtype.
        """
        whole = self._whole(name)
        if whole is not None:
            parts = self.layout.divide(name, whole, weights)
            return {stored: parts[stored].to(w.dtype) for stored, w in weights.items()}
        delta = self._delta(name)
        if delta is None:
            return weights
        magnitude = self._magnitude(name, delta)
        deltas = self.layout.divide(name, delta, weights)
        if magnitude is None:
            return {s: (w.float() + deltas[s]).to(w.dtype) for s, w in weights.items()}
        magnitudes = self.layout.divide(name, magnitude, weights)
        # Row by row of (out, in), so that it holds for some of the rows too.
        across, result = 0 if self._is_turned(name) else 1, {}
        for stored, weight in weights.items():
            changed = weight.float() + deltas[stored]
            changed *= magnitudes[stored] / changed.norm(dim=across, keepdim=True)
            result[stored] = changed.to(weight.dtype)
        return result

    def require_all_used(self, where: Path) -> None:
        """Make sure that the base had a weight for every tensor of the adapter."""
        left = sorted(self.tensors.keys() - self.used)
        if left:
            raise UserError(
                str(where),
                f"the base has no weight for {len(left)} tensors of the adapter, e.g. {left[0]}",
                "train the adapter on this base",
            )

    def _whole(self, name: str) -> torch.Tensor | None:
        """What `modules_to_save` and `bias` trained, which is stored whole."""
        module, _, leaf = name.rpartition(".")
        for key in (PREFIX + name, f"{PREFIX}{module}.base_layer.{leaf}"):
            if key in self.tensors:
                return self._take(key)
        return None

    def _delta(self, name: str) -> torch.Tensor | None:
        """`scale * B @ A` in the model's shape for `name`."""
        module, _, leaf = name.rpartition(".")
        if name not in self.layout.shapes:  # old files hold what the model now computes
            return None
        key, shape = PREFIX + module, tuple(self.layout.shapes[name].shape)
        if f"{key}.lora_embedding_A" in self.tensors:
            a, b = (self._take(f"{key}.lora_embedding_{x}").float() for x in "AB")
            return self._scale(module, a.shape[0]) * (b @ a).T
        if len(shape) == 3:
            return self._experts(name, key, shape)
        if leaf != "weight" or f"{key}.lora_A.weight" not in self.tensors:
            return None
        a, b = (self._take(f"{key}.lora_{x}.weight").float() for x in "AB")
        if a.dim() != 2:
            raise UserError(module, "only linear and embedding layers can be merged", "name others")
        delta = self._scale(module, a.shape[0]) * (b @ a)
        return delta.T if self._is_turned(name) else delta

    def _experts(self, name: str, key: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """`_delta` of experts in one stack: PEFT nests an adapter for each stack of the module."""
        module = self.layout.model.get_submodule(name.rpartition(".")[0])
        turned = getattr(module, "is_transposed", False)
        count, (inner, outer) = shape[0], shape[1:] if turned else shape[:0:-1]
        while f"{key}.lora_A.weight" in self.tensors:
            a, b = (self.tensors[f"{key}.lora_{x}.weight"] for x in "AB")
            if (a.shape[1], b.shape[0]) == (inner, outer):
                a, b = (self._take(f"{key}.lora_{x}.weight").float() for x in "AB")
                a, b = a.reshape(count, -1, inner), b.reshape(outer, -1, count)
                delta = torch.einsum("ore,eri->eio" if turned else "ore,eri->eoi", b, a)
                return self._scale(name, a.shape[1]) * delta
            key += ".base_layer"
        return None

    def _magnitude(self, name: str, delta: torch.Tensor) -> torch.Tensor | None:
        """DoRA's magnitude in the model's shape for `name`."""
        key = f"{PREFIX}{name.rpartition('.')[0]}.lora_magnitude_vector"
        if key not in self.tensors:
            return None
        return self._take(key).float().unsqueeze(0 if self._is_turned(name) else 1).expand_as(delta)

    def _is_turned(self, name: str) -> bool:
        """Whether the weight is stored as (in, out): embeddings, and GPT-2's layers."""
        module = name.rpartition(".")[0]
        is_embedding = f"{PREFIX}{module}.lora_embedding_A" in self.tensors
        return is_embedding or self.layout.is_transposed(module)

    def _scale(self, name: str, rank: int) -> float:
        alphas = self.config["alpha_pattern"]
        alpha = alphas.get(get_pattern_key(alphas.keys(), name), self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config["use_rslora"] else rank)

    def _take(self, key: str) -> torch.Tensor:
        self.used.add(key)
        return self.tensors[key]
