"""The one place that asks what the machine has, and decides what follows from it."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class Machine:
    """The parts of a machine that decide how it computes."""

    cuda: bool
    name: str
    memory_gb: float
    """GiB of the device: GPU memory, or RAM for a CPU."""
    cores: int
    bf16: bool
    """Native bf16 matrix products: CUDA compute capability >= 8, or AVX512-BF16 / AMX."""
    flash_attention: bool = False
    liger: bool = False
    devices: int = 1
    """GPUs that CUDA shows; a CPU is one device, whatever its cores."""


@dataclass(frozen=True)
class Hardware:
    """The ways of computing that suit a machine; recorded in manifests."""

    device: Literal["cpu", "cuda"]
    name: str
    devices: int
    """Devices of this kind in the machine."""
    dtype: Dtype
    """Dtype of computation; adapter weights and optimizer state are float32."""
    attention: Literal["sdpa", "flash_attention_2"]
    optimizer: str
    tokens_per_batch: int
    """Tokens of one forward and backward pass."""
    generation_batch: int
    """Rows generated for together."""
    use_liger_kernel: bool
    gradient_checkpointing: bool
    threads: int
    document_attention: bool
    """Train with `kernels/attention.py`, on rows without padding, where the model allows it."""
    fused_lora: bool
    """Compute adapters with `kernels/lora.py`."""
    fused_norms: bool
    """Compute RMS norms with `kernels/norms.py`; Liger has kernels of its own."""
    keep_dequantised: bool
    """Hold 4-bit weights as the values that they stand for; see `dequantise_base`."""
    tokens_per_second: float
    """Speed with a model of 10^8 parameters, roughly; weighed against `compile_seconds`."""
    compile_seconds: float
    """Time that compiling the layers takes once, on this kind of device."""
    compile_gain: float
    """Share of the time of a step that compiled layers save."""

    def torch_dtype(self) -> "torch.dtype":
        """Return the dtype of computation as torch has it."""
        import torch

        return getattr(torch, self.dtype)

    def micro_batch(self, max_length: int, limit: int) -> int:
        """Return the contexts of a forward pass: a power of two within the token budget."""
        wanted = max(1, min(limit, self.tokens_per_batch // max_length))
        return 2 ** (wanted.bit_length() - 1)

    def record(self) -> dict[str, Any]:
        """Return JSON values for manifests."""
        return asdict(self)


def probe() -> Machine:
    """Ask this machine what it has."""
    import os
    from importlib.util import find_spec

    import psutil
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(
            cuda=True,
            name=properties.name,
            memory_gb=properties.total_memory / 2**30,
            cores=os.cpu_count() or 1,
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
            flash_attention=find_spec("flash_attn") is not None,
            liger=find_spec("liger_kernel") is not None,
            devices=torch.cuda.device_count(),
        )
    return Machine(
        cuda=False,
        name=f"CPU {torch.backends.cpu.get_cpu_capability()}",
        memory_gb=psutil.virtual_memory().total / 2**30,
        cores=len(os.sched_getaffinity(0)),
        bf16=bool({"avx512_bf16", "amx_bf16"} & _cpu_flags()),
    )


def resolve(machine: Machine) -> Hardware:
    """Decide how a machine computes; pure, so that every kind can be tested on any."""
    cuda, large = machine.cuda, machine.memory_gb >= 40
    return Hardware(
        device="cuda" if cuda else "cpu",
        name=machine.name,
        devices=machine.devices,
        dtype="bfloat16" if machine.bf16 else "float16" if cuda else "float32",
        attention="flash_attention_2" if cuda and machine.flash_attention else "sdpa",
        optimizer="paged_adamw_8bit" if cuda else "adamw_torch_fused",
        # More tokens gain no speed on a CPU, where the matrix products are bound already.
        tokens_per_batch=(16384 if large else 4096) if cuda else 1024,
        generation_batch=64 if cuda else 32,
        use_liger_kernel=cuda and machine.liger,
        gradient_checkpointing=cuda and not large,
        threads=machine.cores,
        document_attention=not cuda,
        fused_lora=True,
        fused_norms=not cuda,
        keep_dequantised=not cuda,
        tokens_per_second=50_000.0 if cuda else 200.0 * machine.cores,
        # On a GPU, both are guesses until they are measured. On a CPU, compiled layers win nothing
        # over the kernels of `attention.py`, `lora.py` and `norms.py`: SmolLM2-135M makes 331
        # tokens/s with and 399 without them, by `benchmarks/training_speed.py --ours
        # "ours,ours, compiled"`, which also gives the seconds.
        compile_seconds=90.0 if cuda else 17.0,
        compile_gain=0.15 if cuda else 0.0,
    )


def this_machine() -> Hardware:
    """Decide how this machine computes."""
    return resolve(probe())


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            line = next((text for text in file if text.startswith("flags")), "")
    except FileNotFoundError:  # not Linux: no flags to read, float32 is always right
        return set()
    return set(line.split())
