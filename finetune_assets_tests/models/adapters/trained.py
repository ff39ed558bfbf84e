"""Adapters of every kind, trained for a few steps."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
)

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.hardware import Hardware, this_machine

WHOLE = {"quantization": "none"}
KINDS: dict[str, dict[str, Any]] = {
    "lora": WHOLE,
    "gaussian": {**WHOLE, "lora": {"init": "gaussian"}},
    "rslora": {**WHOLE, "lora": {"rslora": True}},
    "dora": {**WHOLE, "lora": {"dora": True}},
    "dropout": {**WHOLE, "lora": {"dropout": 0.1}},
    "bias": {**WHOLE, "lora": {"bias": "all"}},
    "bias of layers": {**WHOLE, "lora": {"bias": "lora_only", "dora": True}},
    "some layers": {**WHOLE, "lora": {"targets": ["q_proj", "v_proj"]}},
    "by expression": {**WHOLE, "lora": {"targets": r".*\.(up|down)_proj"}},
    "embeddings": {**WHOLE, "lora": {"targets": ["q_proj", "embed_tokens"]}},
    "head": {**WHOLE, "lora": {"modules_to_save": ["lm_head"]}},
    "norms": {**WHOLE, "lora": {"modules_to_save": ["norm"], "dora": True}},
    "pissa": {**WHOLE, "lora": {"init": "pissa"}},
    "pissa, rslora, dora": {**WHOLE, "lora": {"init": "pissa", "rslora": True, "dora": True}},
    "pissa, head": {**WHOLE, "lora": {"init": "pissa", "modules_to_save": ["lm_head"]}},
    "nf4": {"quantization": "nf4"},
    "nf4, dora": {"quantization": "nf4", "lora": {"dora": True}},
    "nf4, head": {"quantization": "nf4", "lora": {"modules_to_save": ["lm_head"]}},
    "fp4": {"quantization": "fp4", "double_quantization": False},
    "int8": {"quantization": "int8"},
    "loftq": {"quantization": "nf4", "lora": {"init": "loftq"}},
    "loftq, rslora, dora": {
        "quantization": "nf4",
        "lora": {"init": "loftq", "rslora": True, "dora": True},
    },
    "rank above the width of k and v": {**WHOLE, "lora": {"init": "pissa", "r": 40}},
    "full": {**WHOLE, "method": "full"},
}
ROUNDING = 1e-5
"""Of float32 logits, relative to their range."""
QUANTISATION = 0.05
"""What 4 bits cost a random model of width 64, relative to the logits' range."""
BATCH = torch.tensor([[5, 6, 7, 8, 20, 90, 33, 41] * 4])


def recipe(changes: dict[str, Any]) -> Training:
    lora = {"r": 4, "alpha": 8, **changes.get("lora", {})}
    return Training(**{**changes, "lora": lora})


def float32() -> Hardware:
    """This machine, computing in the one dtype in which equal means equal."""
    return dataclasses.replace(this_machine(), dtype="float32")


@dataclass
class Trained:
    model: Any
    out: Path
    losses: list[float]


Train = Callable[..., Trained]


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=BATCH, use_cache=False).logits


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest, relative to the range."""
    return float((actual - expected).abs().max() / (expected.max() - expected.min()))


def loaded(base: Path, out: Path) -> Any:
    """By stock PEFT or transformers, in float32."""
    if not (out / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, out)
