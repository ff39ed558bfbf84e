"""Peak memory of fine-tuning runs as others have published it, with the settings they state.

LitGPT: https://github.com/Lightning-AI/litgpt/blob/main/tutorials/resource-tables.md, section
"Finetuning with LoRA on 1 GPU": A100 40GB, bf16-true, Alpaca with its longest row of 1304 tokens,
finetune/lora.py as of October 2023 (LoRA of rank 8 with dropout 0.05 on queries and values, no
checkpointing of activations, bitsandbytes 0.41 with the head quantised too).

torchtune, May 2024: table "peak memory usage and training speed" of its README before version
0.2: batch 4, sequences of 2048, activation checkpointing; its model gave float32 logits, which its
recipes shifted by a copy.

torchtune, 2025: https://github.com/pytorch/torchtune/blob/main/README.md, "Optimization flags"
(Llama 3.2 3B, batch 2, packed to 4096, A100, each row on top of the one before) and "Memory and
training speed" (Llama 3.1, batch 2, packed to 2048, compiled), with the adapters of its configs.

Speeds are from the same tables: LitGPT's "Time 1k iterations", for rows of Alpaca that have some
270 tokens with their template, and torchtune's tokens a second, whose packed rows have some 200.

torchtune, full tuning: pull requests 389 (AdamW in bf16, with and without `foreach`) and 527
(paged AdamW, step in backward).
"""

from dataclasses import dataclass, field, replace
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.memory import (
    Computation,
    Load,
    Memory,
    divide,
    estimate_phases,
    kept_inputs,
    peak,
    quantised_bytes,
    trained_matrices,
)
from finetune_assets.models.planning.shape import Shape, adapted, read

GIB = 2**30
GB = 10**9


def llama(
    hidden: int,
    layers: int,
    heads: int,
    wide: int,
    vocabulary: int,
    kv: int = 0,
    tied: bool = False,
) -> Shape:
    return read(
        {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv or heads,
            "intermediate_size": wide,
            "vocab_size": vocabulary,
            "tie_word_embeddings": tied,
        },
        "config.json",
    )


LLAMA_7B = llama(4096, 32, 32, 11008, 32000)
LLAMA_13B = llama(5120, 40, 40, 13824, 32000)
LLAMA_33B = llama(6656, 60, 52, 17920, 32000)
LLAMA_65B = llama(8192, 80, 64, 22016, 32000)
LLAMA_31_8B = llama(4096, 32, 32, 14336, 128256, kv=8)
LLAMA_31_70B = llama(8192, 80, 64, 28672, 128256, kv=8)
LLAMA_31_405B = llama(16384, 126, 128, 53248, 128256, kv=8)
LLAMA_32_3B = llama(3072, 28, 24, 8192, 128256, kv=8, tied=True)


def recipe(**keys: Any) -> Training:
    return Training.model_validate(keys)


def lora(r: int, targets: Any, quantization: str = "none", **keys: Any) -> Training:
    return recipe(lora={"r": r, "targets": targets}, quantization=quantization, **keys)


@dataclass(frozen=True)
class Tool:
    """How another tool computes: what it trains has 16 bits, and all tokens have logits."""

    computation: Computation = field(default_factory=Computation)
    norms_in_16_bits: bool = False
    keeps_inputs: bool = False
    """4-bit layers keep their inputs, as those of bitsandbytes did in 2023."""
    quantised_head: bool = False
    float32_logits: int = 2
    """Float32 copies of logits that are there together."""
    logit_chunks: int = 1
    """Parts, one after another, in which logits become float32 for the loss."""
    step_in_backward: bool = False
    """Each gradient is used and freed as soon as it is there."""

    def that(self, **keys: Any) -> "Tool":
        """The same tool with another computation."""
        return replace(self, computation=replace(self.computation, **keys))


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    training: Training
    tool: Tool
    tokens: int
    """Of a forward pass on one device; its logits are computed for all of them."""
    published: float
    """Bytes."""
    devices: int = 1

    @property
    def computation(self) -> Computation:
        return self.tool.computation


def estimate(case: Case) -> Memory:
    """The project's formulas for a case, changed where the other tool computes otherwise."""
    shape, training, tool = case.shape, case.training, case.tool
    load = Load(case.tokens, case.tokens, case.tokens, case.devices)
    loss, block, step = (
        _in_16_bits(phase, case)
        for phase in estimate_phases(shape, training, tool.computation, load)
    )
    more = case.tokens * _more_of_a_block(case)
    kept = 0 if tool.computation.checkpointing else shape.layers * more
    each = 2 + 4 * tool.float32_logits / tool.logit_chunks
    logits = round(case.tokens * shape.vocabulary * each)
    # Weights that are trained whole need no copy of 16 bits for the passes.
    cast = 2 * numbers(shape, training) if training.method == "full" else 0
    found = (
        replace(
            loss,
            activations=loss.activations + kept,
            logits=logits,
            workspace=loss.workspace - cast,
        ),
        replace(
            block,
            activations=block.activations + (kept or more),
            workspace=block.workspace - cast,
        ),
        replace(step, workspace=step.workspace // 2),
    )
    strategy = training.devices.strategy
    return peak([divide(each, strategy, case.devices) for each in found], tool.computation.slack)


def numbers(shape: Shape, training: Training) -> int:
    """How many numbers are trained."""
    return sum(
        rows * columns * n for (rows, columns), n in trained_matrices(shape, training).items()
    )


def _more_of_a_block(case: Case) -> int:
    """Bytes of a token that a block keeps in the other tool, less those that it keeps in ours."""
    shape, training, tool = case.shape, case.training, case.tool
    more = -2 * shape.hidden * 2 if tool.norms_in_16_bits else 0
    if training.method == "full":
        return more
    changed = adapted(shape, training.lora.targets)
    if tool.keeps_inputs and training.quantization != "none":
        more += 2 * (kept_inputs(shape.linears) - kept_inputs(changed))
    return more - 2 * training.lora.r * len(changed)


def _in_16_bits(phase: Memory, case: Case) -> Memory:
    """What is trained takes half; a quantised model may have a quantised head."""
    shape, training, tool = case.shape, case.training, case.tool
    matrices = trained_matrices(shape, training)
    largest = 2 * max(rows * columns for rows, columns in matrices)
    weights = phase.weights
    if training.method == "full":
        weights //= 2
    elif tool.quantised_head and training.quantization != "none":
        weights += round(shape.head * (quantised_bytes(training) - 2))
    in_float32 = not tool.computation.optimizer.endswith("bit")
    return replace(
        phase,
        weights=weights,
        adapter=phase.adapter // 2,
        gradients=largest if tool.step_in_backward else phase.gradients // 2,
        optimizer=phase.optimizer // 2 if in_float32 else phase.optimizer,
    )


def _litgpt(size: str, shape: Shape, scheme: str, rows: int, published: float) -> Case:
    quantization, _, double = scheme.partition("-")
    training = recipe(
        lora={"r": 8, "targets": ["q_proj", "v_proj"], "dropout": 0.05},
        quantization=quantization,
        double_quantization=bool(double),
    )
    tool = Tool(norms_in_16_bits=True, keeps_inputs=True, quantised_head=True)
    name = f"LitGPT Llama 2 {size} {scheme}, micro-batch {rows}"
    return Case(name, shape, training, tool, 1304 * rows, published * GB)


LITGPT = [
    _litgpt("7B", LLAMA_7B, "none", 1, 21.30),
    _litgpt("7B", LLAMA_7B, "nf4", 1, 14.14),
    _litgpt("7B", LLAMA_7B, "nf4-dq", 1, 13.84),
    _litgpt("7B", LLAMA_7B, "none", 2, 29.07),
    _litgpt("13B", LLAMA_13B, "none", 1, 38.12),
    _litgpt("13B", LLAMA_13B, "nf4", 1, 23.14),
    _litgpt("13B", LLAMA_13B, "nf4-dq", 1, 22.55),
]

_MAY_2024 = Tool(Computation(checkpointing=True), float32_logits=4)
_TWO = {"devices": {"count": 2, "strategy": "fsdp"}}
_EIGHT = {"devices": {"count": 8, "strategy": "fsdp"}}
_COMPILED = _MAY_2024.that(compiled=True)
TORCHTUNE_2024 = [
    Case(name, LLAMA_7B, training, tool, 4 * 2048, published * GB, devices)
    for name, training, tool, published, devices in (
        ("QLoRA, compiled", lora(8, "all-linear", "nf4"), _COMPILED, 12.3, 1),
        ("LoRA", lora(8, ["q_proj", "v_proj"]), _MAY_2024, 21.3, 1),
        ("LoRA on two", lora(8, ["q_proj", "v_proj"], **_TWO), _MAY_2024, 16.2, 2),
    )
]

FULL = recipe(method="full", quantization="none")
# Compiled, the loss never stores its log-probabilities.
_FUSED = Tool(Computation(compiled=True), float32_logits=1)
_CHUNKED = replace(_FUSED, logit_chunks=8)
_CHECKPOINTED = _CHUNKED.that(checkpointing=True)
_IN_BACKWARD = replace(_CHECKPOINTED, step_in_backward=True)
_OFFLOADED = _IN_BACKWARD.that(offloads=True)
_ADAPTER = _CHECKPOINTED.that(offloads=True)
_RANK_64 = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TORCHTUNE_FLAGS = [
    Case(f"Llama 3.2 3B {name}", LLAMA_32_3B, training, tool, 2 * 4096, published * GIB)
    for name, training, tool, published in (
        ("packed", FULL, Tool(), 60.0),
        ("+ compile", FULL, _FUSED, 51.0),
        ("+ chunked cross entropy", FULL, _CHUNKED, 42.9),
        ("+ activation checkpointing", FULL, _CHECKPOINTED, 24.9),
        ("+ step in backward", FULL, _IN_BACKWARD, 23.1),
        ("+ activation offloading", FULL, _OFFLOADED, 21.8),
        ("+ 8-bit AdamW", FULL, _OFFLOADED.that(optimizer="adamw_8bit"), 17.6),
        ("LoRA", lora(64, _RANK_64), _ADAPTER, 8.5),
        ("QLoRA", lora(64, _RANK_64, "nf4"), _ADAPTER, 4.6),
    )
]

_PAGED = _IN_BACKWARD.that(optimizer="paged_adamw_8bit")
TORCHTUNE_31 = [
    Case(f"Llama 3.1 {name}", shape, training, tool, 2 * 2048, published, devices)
    for name, shape, training, tool, published, devices in (
        ("8B full, 4090", LLAMA_31_8B, FULL, _PAGED, 18.9 * GIB, 1),
        ("8B LoRA, 4090", LLAMA_31_8B, lora(8, _RANK_64), _CHECKPOINTED, 16.2 * GIB, 1),
        ("8B LoRA, A6000", LLAMA_31_8B, lora(8, _RANK_64), _CHUNKED, 30.3 * GIB, 1),
        ("8B QLoRA", LLAMA_31_8B, lora(8, _RANK_64, "nf4"), _CHECKPOINTED, 7.4 * GIB, 1),
        ("70B LoRA", LLAMA_31_70B, lora(16, _RANK_64, **_EIGHT), _CHECKPOINTED, 27.6 * GIB, 8),
        (
            "405B QLoRA",
            LLAMA_31_405B,
            lora(16, _RANK_64, "nf4", **_EIGHT),
            _CHECKPOINTED,
            44.8 * GB,
            8,
        ),
    )
]

_PAGED_32 = Computation(optimizer="paged_adamw_32bit", checkpointing=True)
TORCHTUNE_FULL = [
    Case(f"Llama 2 7B full, {name}", LLAMA_7B, FULL, tool, 512, published * GB)
    for name, tool, published in (
        ("AdamW", Tool(), 54.0),
        ("paged, in backward", Tool(_PAGED_32, step_in_backward=True), 13.99),
    )
]

CASES = [*LITGPT, *TORCHTUNE_2024, *TORCHTUNE_FLAGS, *TORCHTUNE_31, *TORCHTUNE_FULL]


@dataclass(frozen=True)
class Timed:
    case: Case
    gpu: str
    tokens: int
    """Of a pass."""
    span: int
    """Tokens of a row."""
    published: float
    """Seconds of a pass."""


TIMED = [
    *(
        Timed(case, "A100 40GB", tokens, 270, minutes * 60 / 1000)
        for case, tokens, minutes in zip(
            (LITGPT[0], LITGPT[1], LITGPT[3], LITGPT[4], LITGPT[5]),
            (270, 270, 600, 270, 270),
            (2.36, 3.68, 2.52, 3.19, 6.38),
            strict=True,
        )
    ),
    *(
        Timed(TORCHTUNE_FLAGS[index], "A100 80GB", 2 * 4096, 200, 2 * 4096 / rate)
        for index, rate in ((2, 9174), (3, 7210), (7, 8210), (8, 8035))
    ),
]
