"""Choices of how a recipe is computed on a machine, which the estimate and the trainer share."""

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.hardware import Dtype, Hardware

PLAIN = {
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma3_text", "granite"),
    *("olmo", "olmo2", "phi3", "starcoder2", "cohere", "stablelm"),
}
"""Architectures whose attention passes through transformers' interface without additions."""

LONGEST_STORED = 1024
"""Tokens of a document whose probabilities are kept for the backward pass; they grow with the
square, so longer ones go through torch's blocked kernel, which computes them again."""

LOGIT_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
"""Float32 logits that exist at a time: what a CPU's last cache holds; on a GPU, enough rows to keep
it busy."""

FROM_BASE = ("pissa", "loftq")
"""Values of `lora.init` by which an adapter begins from the base's own weights."""


def precision(training: Training, hardware: Hardware) -> Dtype:
    """Return the dtype of computation, by torch's name."""
    names: dict[str, Dtype] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    return names.get(training.precision, hardware.dtype)


def pays_to_compile(training: Training, hardware: Hardware, tokens: int) -> bool:
    """Whether compiled layers win back, within this run, the time that compiling them takes."""
    if training.torch_compile != "auto":
        return training.torch_compile
    expected = tokens / hardware.tokens_per_second
    return expected * hardware.compile_gain > hardware.compile_seconds
