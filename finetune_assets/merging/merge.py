"""Merging a LoRA adapter into the base's own weights, tensor by tensor."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from finetune_assets.errors import UserError
from finetune_assets.storage.artefacts import MANIFEST

ADAPTER_PREFIX = "base_model.model."


def merge(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    """Write the base with the adapter added to its weights; returns counts.

    `W + scale * B @ A` is computed in float32 and stored in the dtype of `W`; shards, names and
    tokenizer files stay those of the base. Memory: one shard.

    Raises:
        UserError: the adapter has tensors that the base has no weight for, or is no plain LoRA.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    if config["peft_type"] != "LORA" or config.get("use_dora") or config.get("bias") != "none":
        raise UserError(
            str(adapter), "only plain LoRA adapters can be merged", "train without DoRA"
        )
    scale = config["lora_alpha"] / (
        math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    )
    deltas = load_file(adapter / "adapter_model.safetensors")
    pending = {name.rsplit(".lora_", 1)[0] for name in deltas}
    for shard in sorted(base.glob("*.safetensors")):
        tensors = {}
        with safe_open(shard, framework="pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 - not a dict
                weight = file.get_tensor(name)
                key = ADAPTER_PREFIX + name.removesuffix(".weight")
                if key in pending:
                    pending.remove(key)
                    a = deltas[f"{key}.lora_A.weight"].float()
                    b = deltas[f"{key}.lora_B.weight"].float()
                    weight = (weight.float() + scale * (b @ a)).to(weight.dtype)
                tensors[name] = weight.contiguous()
        save_file(tensors, out / shard.name, metadata=metadata)
        del tensors
    if pending:
        raise UserError(
            str(adapter),
            f"the base has no weight for {len(pending)} adapted layers, e.g. {min(pending)}",
            "train the adapter on this base",
        )
    for path in base.iterdir():
        # The base's manifest is about the base; the merged model gets one of its own.
        if path.suffix != ".safetensors" and path.name != MANIFEST:
            shutil.copy2(path, out / path.name)
    return {"merged_layers": len(deltas) // 2, "scale": scale, "dtype": str(torch.float32)}


def parity(
    base: Path, adapter: Path, merged: Path, prompts: list[list[int]]
) -> dict[str, float | int]:
    """Compare logits of base + adapter (by PEFT, float32) with those of the merged model.

    Args:
        prompts: token ids of real prompts.

    Returns:
        Largest absolute logit difference, that difference relative to the logits' range, and the
        number of positions at which the two disagree on the most likely token.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def logits(model: Any) -> list[Any]:
        model.eval()
        with torch.inference_mode():
            return [model(input_ids=torch.tensor([ids])).logits[0] for ids in prompts]

    pair = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(pair, adapter))
    del pair
    actual = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    difference = max(float((a - e).abs().max()) for a, e in zip(actual, expected, strict=True))
    span = max(float(e.max() - e.min()) for e in expected)
    disagree = sum(
        int((a.argmax(-1) != e.argmax(-1)).sum()) for a, e in zip(actual, expected, strict=True)
    )
    return {
        "max_logit_difference": difference,
        "relative_difference": difference / span,
        "positions": sum(len(ids) for ids in prompts),
        "top_token_disagreements": disagree,
    }


TOLERANCE = {"F32": 1e-4, "BF16": 2e-2, "F16": 5e-3}
"""Largest relative logit difference by stored dtype: rounding of the merged weights explains it."""


def stored_dtype(folder: Path) -> str:
    """Dtype of the largest tensor, in safetensors' name."""
    from safetensors import safe_open

    best = (0, "F32")
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_slice(name)
                best = max(best, (math.prod(tensor.get_shape()), tensor.get_dtype()))
    return best[1]
