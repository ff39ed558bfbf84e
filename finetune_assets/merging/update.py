"""What an adapter does to the tensors of its base, in float32."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_assets.errors import UserError
from finetune_assets.training.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS

PREFIX = "base_model.model."
"""Of every name in an adapter file, before the base's own name."""


@dataclass
class Update:
    """An adapter, applied to one tensor at a time."""

    config: dict[str, Any]
    tensors: dict[str, Any]
    used: set[str] = field(default_factory=set)
    """Adapter tensors that found the weight that they change."""

    @classmethod
    def read(cls, folder: Path) -> "Update":
        """Raises a UserError unless the adapter is a LoRA of some kind."""
        from safetensors.torch import load_file

        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        if config["peft_type"] != "LORA":
            raise UserError(
                str(folder), f"a {config['peft_type']} adapter cannot be merged", "train a LoRA"
            )
        return cls(config, load_file(folder / ADAPTER_WEIGHTS))

    def touches(self, name: str) -> bool:
        """Whether the tensor is changed."""
        module = PREFIX + name.rpartition(".")[0]
        return any(key.startswith(f"{module}.") for key in self.tensors)

    def apply(self, name: str, weight: Any) -> Any:
        """The base's tensor `name` as the adapter has it, in the dtype of `weight`."""
        module, _, leaf = name.rpartition(".")
        # What `modules_to_save` and `bias` train is stored whole.
        for key in (PREFIX + name, f"{PREFIX}{module}.base_layer.{leaf}"):
            if key in self.tensors:
                return self._take(key).to(weight.dtype)
        if leaf != "weight":
            return weight
        key = PREFIX + module
        if f"{key}.lora_A.weight" in self.tensors:
            delta = self._delta(module, f"{key}.lora_A.weight", f"{key}.lora_B.weight")
            # GPT-2's layers are stored transposed: (in, out).
            across = 0 if self.config["fan_in_fan_out"] else 1
            delta = delta if across else delta.T
        elif f"{key}.lora_embedding_A" in self.tensors:
            delta = self._delta(module, f"{key}.lora_embedding_A", f"{key}.lora_embedding_B").T
            across = 0
        else:
            return weight
        changed = weight.float() + delta
        if f"{key}.lora_magnitude_vector" in self.tensors:
            magnitude = self._take(f"{key}.lora_magnitude_vector").float()
            norm = changed.norm(dim=across)
            changed *= (magnitude / norm).unsqueeze(across)
        return changed.to(weight.dtype)

    def require_all_used(self, where: Path) -> None:
        """Nothing of the adapter was left out.

        Raises:
            UserError: names tensors that the base has no weight for.
        """
        left = sorted(self.tensors.keys() - self.used)
        if left:
            raise UserError(
                str(where),
                f"the base has no weight for {len(left)} tensors of the adapter, e.g. {left[0]}",
                "train the adapter on this base",
            )

    def _delta(self, module: str, a: str, b: str) -> Any:
        """`scale * B @ A`, of shape (out, in)."""
        from peft.utils.other import get_pattern_key

        first, second = self._take(a).float(), self._take(b).float()
        if first.dim() != 2:
            raise UserError(module, "only linear and embedding layers can be merged", "name others")
        alphas, rank = self.config["alpha_pattern"], first.shape[0]
        alpha = alphas.get(get_pattern_key(alphas.keys(), module), self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config["use_rslora"] else rank) * (second @ first)

    def _take(self, key: str) -> Any:
        self.used.add(key)
        return self.tensors[key]
