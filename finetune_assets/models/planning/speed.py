"""How long a run computes: floating-point operations, and what a machine does of them a second.

A forward pass takes 2 operations for each parameter and token, a backward pass 2 for the gradient
of the input and 2 for that of a trained weight (Kaplan et al., 2020, section 2.1).
"""

import time
from dataclasses import dataclass

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.gpus import UTILISATION, Gpu
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.memory import Computation, trained_matrices
from finetune_assets.models.planning.shape import Shape

CPU_EFFICIENCY = 0.5
"""Share of the probe's speed that a training step achieves on a CPU, by processor time; measured on
SmolLM2-135M in bf16: 0.57 with fused adapters, 0.44 trained whole."""

DEQUANTISED_BYTES = 0.5 + 2 + 2
"""Bytes moved to dequantise a parameter: read in 4 bits, written and read again in 16."""

DEQUANTISING_EFFICIENCY = 0.5
"""Share of the memory's bandwidth at which that happens."""

DEQUANTISED_ON_GPU = 1e11
"""Parameters a second that a GPU dequantises whose bandwidth is not known."""

DEQUANTISED_ON_CPU = 1e9
"""Parameters a second that a CPU dequantises, where 4-bit weights are not held as values."""

BLOCK_SECONDS = 0.004
"""Least time of a pass forth and back through a block on a GPU, however small it is, as its kernels
are launched one by one; LitGPT's table of one row a pass has it for models of 1 to 13 billion
parameters."""

PROBE_SECONDS = 0.5
"""Time that `measure_speed` takes."""


@dataclass(frozen=True)
class Speed:
    """The work that one device gets done in training."""

    operations: float
    """Floating-point operations a second."""
    dequantised: float
    """Quantised parameters a second that become numbers to compute with."""
    block: float = 0.0
    """Seconds that a pass through a block takes at least."""


def published_speed(gpu: Gpu) -> Speed:
    """Return the speed that published peaks promise, at UTILISATION."""
    bandwidth = gpu.bandwidth * 1e9 * DEQUANTISING_EFFICIENCY
    return Speed(gpu.tflops * 1e12 * UTILISATION, bandwidth / DEQUANTISED_BYTES, BLOCK_SECONDS)


def seconds(
    shape: Shape,
    training: Training,
    computation: Computation,
    speed: Speed,
    *,
    work: float,
    passes: int,
) -> float:
    """Return how long one device computes for `work` operations in `passes` forth and back."""
    needed = max(work / speed.operations, passes * shape.layers * speed.block)
    if training.quantization != "none" and not computation.dequantised:
        times = passes * (3 if computation.checkpointing else 2)
        needed += times * shape.linear / speed.dequantised
    return needed


def forward_operations(shape: Shape, *, tokens: float, supervised: float, span: float) -> float:
    """Return the operations of a forward pass.

    `supervised` tokens have their logits computed; each token sees half of its `span` on average.
    """
    return (
        2 * (shape.linear + shape.layers * shape.active_experts) * tokens
        + _attention(shape, tokens, span)
        + 2 * shape.vocabulary * shape.hidden * supervised
    )


def _attention(shape: Shape, tokens: float, span: float) -> float:
    """Scores and weighted values: two products of 2 operations, for half of the row."""
    return 2 * shape.layers * shape.query * span * tokens


def training_operations(
    shape: Shape,
    training: Training,
    computation: Computation,
    *,
    tokens: float,
    supervised: float,
    span: float,
) -> float:
    """Return the operations of a forward and a backward pass.

    They are 4 for each frozen weight and token, 6 for each trained one, and 2 more of all in the
    blocks where activations are computed again.
    """
    once = forward_operations(shape, tokens=tokens, supervised=supervised, span=span)
    # Fused attention computes the scores again: five products back for two forth.
    total = 2 * once + 0.5 * _attention(shape, tokens, span)
    if training.method == "full":
        total += 2 * (shape.linear + shape.layers * shape.active_experts) * tokens
        total += 2 * shape.vocabulary * shape.hidden * supervised
    else:
        matrices = trained_matrices(shape, training)
        total += 6 * sum(rows * columns * n for (rows, columns), n in matrices.items()) * tokens
    if computation.checkpointing:
        total += once - 2 * shape.vocabulary * shape.hidden * supervised
    return total


def measure_speed(hardware: Hardware, shape: Shape) -> Speed:
    """Time matrix products of this model's size on this machine, for half a second."""
    import torch

    dtype, rows = hardware.torch_dtype(), 1024
    device = torch.device(hardware.device)
    left = torch.randn(rows, shape.hidden, device=device).to(dtype)
    right = torch.randn(shape.hidden, max(shape.intermediate, shape.hidden), device=device)
    right = right.to(dtype)
    torch.matmul(left, right)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < PROBE_SECONDS:
        torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
    rate = done * 2 * rows * right.numel() / (time.perf_counter() - started)
    if hardware.device == "cpu":
        return Speed(rate * CPU_EFFICIENCY, DEQUANTISED_ON_CPU)
    return Speed(rate * UTILISATION, DEQUANTISED_ON_GPU, BLOCK_SECONDS)
