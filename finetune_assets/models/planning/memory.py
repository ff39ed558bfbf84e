"""What a training run needs, from formulas: memory by part, and floating-point operations.

Bytes are those of one device when it holds most. The parts and their sources:

- weights: 2 or 4 bytes a parameter; 4-bit ones 0.5 and a float32 scale for every 64, or with
  double quantisation an 8-bit scale for every 64 and a float32 one for every 256 of those
  (Dettmers et al., 2023, section 3).
- adapter, gradients, optimizer: bytes of a trained parameter (Rajbhandari et al., 2020, section 3).
- activations: what autograd keeps of the operations of a block (the method of Korthikanti et al.,
  2022, section 4, for gated blocks, fused attention, and linear layers whose weights are frozen).
- strategies: ZeRO divides optimizer state, gradients and weights (Rajbhandari et al., section 5).
- operations: 2 of a forward pass for each parameter and token, 2 for the gradient of the input and
  2 for that of a trained weight (Kaplan et al., 2020, section 2.1).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.choices import LONGEST_STORED
from finetune_assets.models.planning.shape import Linear, Shape, adapted

FLOAT32 = 4


@dataclass(frozen=True)
class Engine:
    """How the software computes, as far as memory feels it; defaults are this project's trainer."""

    compute: int = 2
    """Bytes of a number in the forward pass: weights that are not quantised, activations."""
    trained: int = FLOAT32
    """Bytes of a trained parameter, of its gradient, and of a moment that torch keeps of it."""
    optimizer: str = "adamw_torch_fused"
    checkpointing: bool = False
    """Only the input of each block is kept, and the block computed again in the backward pass."""
    compiled: bool = False
    """Blocks are compiled: what is cheap to compute again is not kept."""
    attention: Literal["fused", "documents", "eager"] = "fused"
    """`fused` keeps no scores, `documents` those of rows of up to LONGEST_STORED tokens, `eager`
    all, as probabilities and in float32."""
    float32_norms: bool = True
    """Normalisation keeps a float32 copy of its input, as transformers' does if not compiled."""
    cast_inputs: int = 0
    """Bytes of a number in the copy that each adapted layer makes of its input."""
    quantised_keep_inputs: bool = False
    """4-bit layers keep their inputs, as those of bitsandbytes did in 2023."""
    dequantised: bool = False
    """Adapted layers hold 4-bit weights as the values that they stand for."""
    quantised_head: bool = False
    """The output head is quantised too."""
    all_logits: bool = False
    """Logits of every position, not only of those that carry loss."""
    logit_slice: int | None = None
    """Bytes of float32 logits that exist at a time: a fused loss. None: all at once."""
    logit_chunks: int = 1
    """Parts, one after another, in which logits become float32 for the loss."""
    float32_logits: int = 2
    """Float32 copies of logits that are there together: log-probabilities and their gradient."""
    step_in_backward: bool = False
    """Each gradient is used and freed as soon as it is there."""
    accumulates: bool = False
    """Gradients of earlier passes are there while a later one runs."""
    offloads: bool = False
    """Checkpoints of activations wait in the host's memory."""
    cuda: bool = True
    runtime: int = 0
    """Bytes of libraries and contexts that are there before the model is."""
    slack: float = 0.0
    """Share of temporary memory that the allocator loses to rounding and fragments."""


@dataclass(frozen=True)
class Memory:
    """Bytes by part."""

    weights: int = 0
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    workspace: int = 0
    """Temporary tensors of one block or of the optimizer; gathered or dequantised weights."""
    runtime: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(**{name: n + other.parts()[name] for name, n in self.parts().items()})


Matrices = Counter[tuple[int, int]]
"""How many trained matrices there are of each height and width."""

_DIVIDED = {
    "ddp": (),
    "zero2": ("gradients", "optimizer"),
    "zero3": ("weights", "adapter", "gradients", "optimizer"),
    "fsdp": ("weights", "adapter", "gradients", "optimizer"),
}
"""Parts that each strategy divides among devices."""


def memory(
    shape: Shape,
    training: Training,
    engine: Engine,
    *,
    tokens: int,
    supervised: int,
    longest: int,
    devices: int = 1,
) -> Memory:
    """Memory of one device at its peak: in a backward pass, or in the optimizer's step.

    Args:
        tokens: of a forward pass on one device.
        supervised: those of them that carry loss.
        longest: tokens of the longest row, which eager attention spans.
    """
    strategy, full = training.devices.strategy, training.method == "full"
    matrices = trained(shape, training)
    numbers = _count(matrices)
    frozen = weight_bytes(shape, training, engine)
    gradients = max((_size(m) for m in matrices), default=0) if engine.step_in_backward else numbers
    gradients *= engine.trained
    fixed = Memory(
        weights=frozen,
        adapter=0 if full else numbers * engine.trained,
        optimizer=0 if on_host(engine) else optimizer_bytes(matrices, engine),
        runtime=engine.runtime,
    )
    sharded = strategy in ("fsdp", "zero3")
    buckets = gradients if devices > 1 and strategy == "ddp" else 0
    gathered = 2 * frozen // shape.layers if devices > 1 and sharded else 0  # one runs, one comes
    cast = numbers * engine.compute if full and engine.compute < engine.trained else 0  # autocast's
    early = gradients if engine.accumulates or engine.step_in_backward else 0
    backward = Memory(gradients=early, workspace=buckets + gathered + cast) + _backward(
        shape, training, engine, tokens, supervised, longest
    )
    foreach = engine.cuda and engine.optimizer == "adamw_torch"  # updates all at once, in a copy
    step = Memory(gradients=gradients, workspace=buckets + gradients * foreach)
    peak = max(
        (_divide(fixed + phase, strategy, devices) for phase in (backward, step)),
        key=lambda phase: phase.total,
    )
    temporary = peak.activations + peak.logits + peak.workspace
    return peak + Memory(runtime=round(engine.slack * temporary))


def weight_bytes(shape: Shape, training: Training, engine: Engine) -> int:
    """The base's weights; a model that is trained whole is held in the trained precision."""
    if training.method == "full":
        return shape.parameters * engine.trained
    if training.quantization == "none":
        return shape.parameters * engine.compute
    if engine.dequantised and training.quantization in ("nf4", "fp4"):
        restored = shape.layers * sum(x.parameters for x in adapted(shape, training.lora.targets))
    else:
        restored = 0
    quantised = shape.linear - restored + (shape.head if engine.quantised_head else 0)
    rest = shape.parameters - quantised
    return round(quantised * _bytes_quantised(training)) + rest * engine.compute


def _bytes_quantised(training: Training) -> float:
    """Of a parameter, with its share of the scales."""
    if training.quantization == "int8":
        return 1.0  # and a float32 for every row of some thousand
    scales = 1 / 64 + FLOAT32 / (64 * 256) if training.double_quantization else FLOAT32 / 64
    return 0.5 + scales


def trained(shape: Shape, training: Training) -> Matrices:
    """The matrices whose gradients are computed."""
    matrices: Matrices = Counter()
    vocabulary = (shape.vocabulary, shape.hidden)
    if training.method == "full":
        for linear in shape.linears:
            matrices[linear.outputs, linear.inputs] += shape.layers
        matrices[vocabulary] += 1 if shape.tied else 2
        matrices[shape.experts + shape.norms, 1] += shape.layers
        return matrices
    lora = training.lora
    for linear in adapted(shape, lora.targets):
        matrices[lora.r, linear.inputs] += shape.layers
        matrices[linear.outputs, lora.r] += shape.layers
        matrices[linear.outputs, 1] += shape.layers * lora.dora
    for name in ("lm_head", "embed_tokens"):
        if isinstance(lora.targets, list) and name in lora.targets:
            matrices[lora.r, shape.hidden] += 1
            matrices[shape.vocabulary, lora.r] += 1
        if name in lora.modules_to_save:
            matrices[vocabulary] += 1
    for linear in shape.linears:
        if any(linear.path.endswith(name) for name in lora.modules_to_save):
            matrices[linear.outputs, linear.inputs] += shape.layers
    return matrices


def _size(matrix: tuple[int, int]) -> int:
    return matrix[0] * matrix[1]


def _count(matrices: Matrices) -> int:
    return sum(_size(matrix) * n for matrix, n in matrices.items())


_MOMENTS = {"adamw": 2, "adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0}
"""Numbers that an optimizer keeps of each trained one; others keep one."""


def optimizer_bytes(matrices: Matrices, engine: Engine) -> int:
    """Optimizer state; 8-bit numbers share a float32 scale in blocks of 256."""
    if engine.optimizer == "adafactor":  # one row and one column of each matrix
        return FLOAT32 * sum(sum(matrix) * n for matrix, n in matrices.items())
    name = engine.optimizer.removeprefix("paged_")
    each: float = engine.trained
    if name.endswith("_8bit"):
        each = 1 + FLOAT32 / 256
    elif name.endswith("_32bit"):
        each = FLOAT32
    moments = _MOMENTS.get(name.removesuffix("_8bit").removesuffix("_32bit"), 1)
    return round(_count(matrices) * moments * each)


def on_host(engine: Engine) -> bool:
    """Whether optimizer state may leave a full device for the host's memory."""
    return engine.cuda and engine.optimizer.startswith("paged_")


def _backward(
    shape: Shape, training: Training, engine: Engine, tokens: int, supervised: int, longest: int
) -> Memory:
    """Temporary memory of a pass, when logits are there or when the last block is run back."""
    positions = tokens if engine.all_logits else supervised
    if engine.logit_slice is not None:
        positions = min(positions, max(16, engine.logit_slice // (FLOAT32 * shape.vocabulary)))
    each: float = engine.compute * (engine.compute < FLOAT32)
    each += engine.float32_logits * FLOAT32 / engine.logit_chunks
    logits = round(positions * shape.vocabulary * each)
    if engine.logit_slice is not None and training.method == "full":
        logits += 2 * shape.vocabulary * shape.hidden * FLOAT32  # the head's gradient, made early
    block = tokens * block_bytes(shape, training, engine, longest)
    # Gradients of one block's activations on their way back.
    back = tokens * engine.compute * (3 * shape.intermediate + 2 * shape.hidden)
    if training.method == "lora" and training.quantization != "none":
        back += max(linear.parameters for linear in shape.linears) * engine.compute
    inputs = tokens * shape.hidden * engine.compute * shape.layers
    if not engine.checkpointing:
        kept = shape.layers * block
        return _larger(
            Memory(activations=kept, logits=logits), Memory(activations=kept, workspace=back)
        )
    kept = 0 if engine.offloads else inputs
    return _larger(
        Memory(activations=kept, logits=logits), Memory(activations=kept + block, workspace=back)
    )


def _larger(one: Memory, other: Memory) -> Memory:
    return max(one, other, key=lambda phase: phase.total)


def block_bytes(shape: Shape, training: Training, engine: Engine, longest: int) -> int:
    """Bytes of one token that a block keeps for its backward pass."""
    full, size = training.method == "full", engine.compute
    changed = shape.linears if full else adapted(shape, training.lora.targets)
    quantised = not full and training.quantization != "none" and engine.quantised_keep_inputs
    keeping = shape.linears if quantised else changed
    norm = max(size, FLOAT32) if engine.float32_norms and not engine.compiled else size
    total = 2 * shape.hidden * norm
    total += (shape.query + shape.key_value) * 2 * size + shape.heads * FLOAT32
    if engine.attention == "eager":
        total += shape.heads * longest * (FLOAT32 + size)
    elif engine.attention == "documents":
        total += shape.heads * min(longest, LONGEST_STORED) * size
    # Gate, its activation and up; or what goes into the activation alone.
    inner = (2 if engine.compiled else 3) if shape.gated else 1
    total += inner * shape.intermediate * size
    total += _kept_inputs(keeping) * size
    if not full:
        lora = training.lora
        copy = engine.cast_inputs + (size + 1 if lora.dropout else 0)  # one byte of a mask
        for linear in changed:
            total += linear.inputs * copy + lora.r * engine.trained
            total += 2 * linear.outputs * size * lora.dora
    return total


def _kept_inputs(keeping: Sequence[Linear]) -> int:
    """Width of the inputs that linear layers keep, each once; attention keeps its output anyway."""
    return sum({x.reads: x.inputs for x in keeping if x.reads != "heads"}.values())


def _divide(memory: Memory, strategy: str, devices: int) -> Memory:
    parts = {part: getattr(memory, part) // devices for part in _DIVIDED[strategy]}
    return replace(memory, **parts)
