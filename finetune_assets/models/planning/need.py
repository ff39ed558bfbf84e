"""The memory that a recipe needs on a device, with batches and checkpointing settled."""

from dataclasses import dataclass
from math import ceil

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning import speed as operations
from finetune_assets.models.planning.choices import LOGIT_BYTES, PLAIN, pays_to_compile, precision
from finetune_assets.models.planning.gpus import gpu
from finetune_assets.models.planning.hardware import Hardware, probe, resolve
from finetune_assets.models.planning.memory import (
    FLOAT32,
    Computation,
    Load,
    Memory,
    estimate_memory,
)
from finetune_assets.models.planning.schedule import Schedule, make_schedule
from finetune_assets.models.planning.shape import Shape
from finetune_assets.models.planning.speed import Speed
from finetune_assets.models.records import TrainingSetRecord

GIB = 2**30

CUDA_RUNTIME = 600 * 10**6
"""Bytes of a CUDA context and the kernels that are loaded into it."""

CUDA_SLACK = 0.1
"""Share of temporary memory that PyTorch's caching allocator loses to rounding and fragments."""

CPU_RUNTIME = 1150 * 10**6
"""Resident bytes of a worker process with torch, transformers, peft and mlflow, and with what
remains of loading; measured on runs of SmolLM2-135M."""

DENSEST = 1.25
"""Tokens with loss of the densest forward pass, as a multiple of the mean."""


@dataclass(frozen=True)
class Counts:
    """The rows and tokens of a training set."""

    rows: int
    contexts: int
    tokens: int
    supervised: int
    """Tokens that carry loss."""
    longest: int
    """Tokens of the longest row."""
    validation_tokens: int
    exact: bool
    """False if they were scaled up from a sample."""

    @classmethod
    def of(cls, record: TrainingSetRecord) -> "Counts":
        """Return those of a training set that was made."""
        train = record.train
        return cls(
            rows=train.rows,
            contexts=train.contexts,
            tokens=train.tokens,
            supervised=train.tokens_with_loss,
            longest=train.longest,
            validation_tokens=record.validation.tokens,
            exact=True,
        )


@dataclass(frozen=True)
class Target:
    """The machine on which a run is to happen."""

    hardware: Hardware
    memory: int
    """Bytes of one device."""
    devices: int = 1
    speed: Speed | None = None
    """None for this machine, whose speed is to be measured."""


def target(training: Training, where: str, device: str | None, devices: int | None) -> Target:
    """Return as many of a named device, or without a name of this machine, as the recipe says.

    `where` named the device, and is named in errors; `devices` is another number of them.
    """
    named = gpu(device, where) if device else None
    machine = named.machine() if named else probe()
    recipe = machine.devices if training.devices.count == "auto" else training.devices.count
    return Target(
        resolve(machine),
        round(machine.memory_gb * GIB),
        devices or recipe,
        operations.published_speed(named) if named else None,
    )


@dataclass(frozen=True)
class Need:
    """The memory, the computation and the batches that a recipe comes to on a target."""

    memory: Memory
    """Memory of one device, when it holds most."""
    computation: Computation
    schedule: Schedule


def need(shape: Shape, training: Training, target: Target, counts: Counts) -> Need:
    """Estimate a run; activations are checkpointed if asked for, or if `auto` and needed."""
    schedule = make_schedule(counts.contexts, training, target.hardware, devices=target.devices)
    context = training.max_length if training.packing else min(training.max_length, counts.longest)
    tokens = min(schedule.micro_batch * context, counts.tokens)
    share = min(1.0, DENSEST * counts.supervised / counts.tokens)
    load = Load(tokens, ceil(tokens * share), min(context, counts.longest), devices=target.devices)
    auto = training.gradient_checkpointing == "auto"
    for checkpointing in (False, True) if auto else (bool(training.gradient_checkpointing),):
        computation = _computation(shape, training, target, schedule, counts, checkpointing)
        needed = estimate_memory(shape, training, computation, load)
        if needed.total <= target.memory:
            break
    return Need(needed, computation, schedule)


def _computation(
    shape: Shape,
    training: Training,
    target: Target,
    schedule: Schedule,
    counts: Counts,
    checkpointing: bool,
) -> Computation:
    """How this project's trainer computes on a target; the choices of `engine.build`."""
    hardware, cuda = target.hardware, target.hardware.device == "cuda"
    compute = FLOAT32 if precision(training, hardware) == "float32" else 2
    divided = target.devices > 1 and training.devices.strategy in ("fsdp", "zero3")
    adapted, documents = training.method == "lora" and not divided, shape.architecture in PLAIN
    plain = not training.lora.dropout and not training.lora.dora and training.quantization != "int8"
    tokens = epochs(schedule, target, counts) * counts.tokens
    return Computation(
        compute=compute,
        optimizer=hardware.optimizer if training.optim == "auto" else training.optim,
        checkpointing=checkpointing,
        compiled=not divided and pays_to_compile(training, hardware, round(tokens)),
        attention="documents" if hardware.document_attention and documents else "fused",
        cast_inputs=0 if compute == FLOAT32 or (plain and hardware.fused_lora) else compute,
        dequantised=hardware.keep_dequantised and adapted,
        logit_slice=None if divided else LOGIT_BYTES[hardware.device],
        accumulates=schedule.accumulation > 1,
        offloads=bool(training.arguments.get("activation_offloading")),
        cuda=cuda,
        runtime=CUDA_RUNTIME if cuda else CPU_RUNTIME,
        slack=CUDA_SLACK if cuda else 0.0,
    )


def epochs(schedule: Schedule, target: Target, counts: Counts) -> float:
    """Return the passes over the training set, of which the last may be a part."""
    contexts = schedule.micro_batch * schedule.accumulation * target.devices
    return schedule.total_steps * contexts / counts.contexts
