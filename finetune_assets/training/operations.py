"""How long a run computes: floating-point operations, and what a machine does of them a second."""

import time
from dataclasses import dataclass

from finetune_assets.catalog.training import Training
from finetune_assets.training.devices import UTILISATION, Gpu
from finetune_assets.training.estimate import Engine, trained
from finetune_assets.training.hardware import Hardware
from finetune_assets.training.shape import Shape

CPU_EFFICIENCY = 0.5
"""Share of the probe's speed that a whole training step achieves on a CPU: the rest goes to what is
no matrix product, measured on runs of SmolLM2-135M."""

DEQUANTISED_BYTES = 0.5 + 2 + 2
"""Of a parameter, moved to dequantise it: read in 4 bits, written and read again in 16."""

DEQUANTISING_EFFICIENCY = 0.5
"""Share of the memory's bandwidth at which that happens."""

DEQUANTISED_ON_CPU = 1e9
"""Parameters a second that a CPU dequantises."""

PROBE_SECONDS = 0.5


@dataclass(frozen=True)
class Speed:
    """What one device achieves in training."""

    operations: float
    """Floating-point operations a second."""
    dequantised: float
    """Quantised parameters a second that become numbers to compute with."""


def of_gpu(gpu: Gpu) -> Speed:
    """From published peaks, at a stated utilisation."""
    bandwidth = gpu.bandwidth * 1e9 * DEQUANTISING_EFFICIENCY
    return Speed(gpu.tflops * 1e12 * UTILISATION, bandwidth / DEQUANTISED_BYTES)


def forward(shape: Shape, *, tokens: float, supervised: float, span: float) -> float:
    """Operations of a forward pass.

    Args:
        supervised: tokens whose logits are computed.
        span: tokens that an attending token's row has; it sees half of them on average.
    """
    return (
        2 * (shape.linear + shape.layers * shape.active_experts) * tokens
        + _attention(shape, tokens, span)
        + 2 * shape.vocabulary * shape.hidden * supervised
    )


def _attention(shape: Shape, tokens: float, span: float) -> float:
    """Scores and weighted values: two products of 2 operations, for half of the row."""
    return 2 * shape.layers * shape.query * span * tokens


def training_pass(
    shape: Shape,
    training: Training,
    engine: Engine,
    *,
    tokens: float,
    supervised: float,
    span: float,
) -> float:
    """Operations of a forward and a backward pass: 4 for each frozen weight and token, 6 for each
    trained one, and 2 more of all in the blocks where activations are computed again."""
    once = forward(shape, tokens=tokens, supervised=supervised, span=span)
    # Fused attention computes the scores again: five products back for two forth.
    total = 2 * once + 0.5 * _attention(shape, tokens, span)
    if training.method == "full":
        total += 2 * (shape.linear + shape.layers * shape.active_experts) * tokens
        total += 2 * shape.vocabulary * shape.hidden * supervised
    else:
        matrices = trained(shape, training)
        total += 6 * sum(rows * columns * n for (rows, columns), n in matrices.items()) * tokens
    if engine.checkpointing:
        total += once - 2 * shape.vocabulary * shape.hidden * supervised
    return total


def measured(hardware: Hardware, shape: Shape) -> Speed:
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
    efficiency = CPU_EFFICIENCY if hardware.device == "cpu" else UTILISATION
    return Speed(rate * efficiency, DEQUANTISED_ON_CPU)
