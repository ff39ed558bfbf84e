"""The memory that a training run needs, by part, from formulas.

Bytes are those of one device when it holds most. The parts and their sources:

- weights: 2 or 4 bytes a parameter; 4-bit ones 0.5 and a float32 scale for every 64, or with
  double quantisation an 8-bit scale for every 64 and a float32 one for every 256 of those
  (Dettmers et al., 2023, section 3).
- adapter, gradients, optimizer: bytes of a trained parameter (Rajbhandari et al., 2020, section 3).
- activations: what autograd keeps of the operations of a block (the method of Korthikanti et al.,
  2022, section 4, for gated blocks, fused attention, and linear layers whose weights are frozen).
- strategies: ZeRO divides optimizer state, gradients and weights (Rajbhandari et al., section 5).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.choices import LONGEST_STORED
from finetune_assets.models.planning.shape import Linear, Shape, adapted

FLOAT32 = 4


@dataclass(frozen=True)
class Computation:
    """How a run computes, as far as memory feels it.

    What is trained, its gradients and what torch's optimizers keep of it are float32, as are the
    inputs that norms keep; logits are those of tokens that carry loss.
    """

    compute: int = 2
    """Bytes of a number in the forward pass: weights that are not quantised, activations."""
    optimizer: str = "adamw_torch_fused"
    checkpointing: bool = False
    """Only the input of each block is kept, and the block computed again in the backward pass."""
    compiled: bool = False
    """Blocks are compiled: what is cheap to compute again is not kept."""
    attention: Literal["fused", "documents"] = "fused"
    """`fused` keeps no scores, `documents` those of rows of up to LONGEST_STORED tokens."""
    cast_inputs: int = 0
    """Bytes of a number in the copy that each adapted layer makes of its input."""
    dequantised: bool = False
    """Adapted layers hold 4-bit weights as the values that they stand for."""
    logit_slice: int | None = None
    """Bytes of float32 logits that exist at a time: a fused loss. None: all at once."""
    accumulates: bool = False
    """Gradients of earlier passes are there while a later one runs."""
    offloads: bool = False
    """Checkpoints of activations wait in the host's memory."""
    cuda: bool = True
    runtime: int = 0
    """Bytes of libraries and contexts that are there before the model is."""
    slack: float = 0.0
    """Share of temporary memory that the allocator loses to rounding and fragments."""

    @property
    def on_host(self) -> bool:
        """Whether optimizer state may leave a full device for the host's memory."""
        return self.cuda and self.optimizer.startswith("paged_")


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
        """All parts together."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the bytes of each part by its name."""
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


@dataclass(frozen=True)
class Load:
    """What a pass on one device computes."""

    tokens: int
    supervised: int
    """Tokens that carry loss."""
    longest: int
    """Tokens of the longest row."""
    devices: int = 1
    """Devices that share the run."""


def estimate_memory(
    shape: Shape, training: Training, computation: Computation, load: Load
) -> Memory:
    """Return the memory of one device at its peak."""
    found = estimate_phases(shape, training, computation, load)
    divided = [divide(phase, training.devices.strategy, load.devices) for phase in found]
    return peak(divided, computation.slack)


def peak(found: Iterable[Memory], slack: float = 0.0) -> Memory:
    """Return the largest memory, with the share of what is temporary that the allocator loses."""
    most = max(found, key=lambda phase: phase.total)
    temporary = most.activations + most.logits + most.workspace
    return most + Memory(runtime=round(slack * temporary))


def estimate_phases(
    shape: Shape, training: Training, computation: Computation, load: Load
) -> tuple[Memory, Memory, Memory]:
    """Return the memory at the three moments that can be the peak, before devices divide it.

    They are the loss, when logits are there; the backward pass through the last block; and the
    optimizer's step.
    """
    strategy, full = training.devices.strategy, training.method == "full"
    matrices = trained_matrices(shape, training)
    numbers = _count(matrices)
    gradients = numbers * FLOAT32
    frozen = weight_bytes(shape, training, computation)
    fixed = Memory(
        weights=frozen,
        adapter=0 if full else gradients,
        optimizer=0 if computation.on_host else optimizer_bytes(matrices, computation),
        runtime=computation.runtime,
    )
    several, sharded = load.devices > 1, strategy in ("fsdp", "zero3")
    buckets = gradients if several and strategy == "ddp" else 0
    gathered = 2 * frozen // shape.layers if several and sharded else 0  # one runs, one comes
    cast = numbers * computation.compute if full and computation.compute < FLOAT32 else 0
    early = Memory(
        gradients=gradients if computation.accumulates else 0, workspace=buckets + gathered + cast
    )
    loss, block = _backward(shape, training, computation, load)
    # adamw_torch updates all at once on CUDA, in a copy.
    foreach = computation.cuda and computation.optimizer == "adamw_torch"
    step = Memory(gradients=gradients, workspace=buckets + gradients * foreach)
    return fixed + early + loss, fixed + early + block, fixed + step


def weight_bytes(shape: Shape, training: Training, computation: Computation) -> int:
    """Return the bytes of the base's weights; a model that is trained whole is held in float32."""
    if training.method == "full":
        return shape.parameters * FLOAT32
    if training.quantization == "none":
        return shape.parameters * computation.compute
    quantised = shape.linear
    if computation.dequantised and training.quantization in ("nf4", "fp4"):
        restored = adapted(shape, training.lora.targets)
        quantised -= shape.layers * sum(linear.parameters for linear in restored)
    rest = shape.parameters - quantised
    return round(quantised * quantised_bytes(training)) + rest * computation.compute


def quantised_bytes(training: Training) -> float:
    """Return the bytes of a quantised parameter, with its share of the scales."""
    if training.quantization == "int8":
        return 1.0  # and a float32 for every row of some thousand
    scales = 1 / 64 + FLOAT32 / (64 * 256) if training.double_quantization else FLOAT32 / 64
    return 0.5 + scales


def trained_matrices(shape: Shape, training: Training) -> Matrices:
    """Return the matrices whose gradients are computed."""
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


def _count(matrices: Matrices) -> int:
    return sum(rows * columns * n for (rows, columns), n in matrices.items())


_MOMENTS = {"adamw": 2, "adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0}
"""Numbers that an optimizer keeps of each trained one; others keep one."""


def optimizer_bytes(matrices: Matrices, computation: Computation) -> int:
    """Return the bytes of optimizer state; 8-bit numbers share a float32 scale in blocks of 256."""
    if computation.optimizer == "adafactor":  # one row and one column of each matrix
        return FLOAT32 * sum(sum(matrix) * n for matrix, n in matrices.items())
    name = computation.optimizer.removeprefix("paged_")
    each = 1 + FLOAT32 / 256 if name.endswith("_8bit") else FLOAT32
    moments = _MOMENTS.get(name.removesuffix("_8bit").removesuffix("_32bit"), 1)
    return round(_count(matrices) * moments * each)


def _backward(
    shape: Shape, training: Training, computation: Computation, load: Load
) -> tuple[Memory, Memory]:
    """Temporary memory of a pass, when logits are there and when the last block is run back."""
    tokens, positions = load.tokens, load.supervised
    if computation.logit_slice is not None:
        positions = min(positions, max(16, computation.logit_slice // (FLOAT32 * shape.vocabulary)))
    # Log-probabilities and their gradient are float32, beside logits in the dtype of computation.
    each = 2 * FLOAT32 + computation.compute * (computation.compute < FLOAT32)
    logits = positions * shape.vocabulary * each
    if computation.logit_slice is not None and training.method == "full":
        logits += 2 * shape.vocabulary * shape.hidden * FLOAT32  # the head's gradient, made early
    block = tokens * block_bytes(shape, training, computation, load.longest)
    # Gradients of one block's activations on their way back.
    back = tokens * computation.compute * (3 * shape.intermediate + 2 * shape.hidden)
    if training.method == "lora" and training.quantization != "none":
        back += max(linear.parameters for linear in shape.linears) * computation.compute
    kept, again = shape.layers * block, 0
    if computation.checkpointing:
        inputs = tokens * shape.hidden * computation.compute * shape.layers
        kept, again = 0 if computation.offloads else inputs, block
    backward = Memory(activations=kept + again, workspace=back)
    return Memory(activations=kept, logits=logits), backward


def block_bytes(shape: Shape, training: Training, computation: Computation, longest: int) -> int:
    """Return the bytes of one token that a block keeps for its backward pass."""
    full, size = training.method == "full", computation.compute
    changed = shape.linears if full else adapted(shape, training.lora.targets)
    total = 2 * shape.hidden * (size if computation.compiled else max(size, FLOAT32))
    total += (shape.query + shape.key_value) * 2 * size + shape.heads * FLOAT32
    if computation.attention == "documents":
        total += shape.heads * min(longest, LONGEST_STORED) * size
    # Gate, its activation and up; or what goes into the activation alone.
    inner = (2 if computation.compiled else 3) if shape.gated else 1
    total += inner * shape.intermediate * size
    total += kept_inputs(changed) * size
    if not full:
        lora = training.lora
        copy = computation.cast_inputs + (size + 1 if lora.dropout else 0)  # one byte of a mask
        for linear in changed:
            total += linear.inputs * copy + lora.r * FLOAT32
            total += 2 * linear.outputs * size * lora.dora
    return total


def kept_inputs(keeping: Sequence[Linear]) -> int:
    """Return the width of inputs that layers keep, each once; attention keeps its output anyway."""
    return sum({x.reads: x.inputs for x in keeping if x.reads != "heads"}.values())


def divide(memory: Memory, strategy: str, devices: int) -> Memory:
    """Return what one of several devices holds."""
    parts = {part: getattr(memory, part) // devices for part in _DIVIDED[strategy]}
    return replace(memory, **parts)
