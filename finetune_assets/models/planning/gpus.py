"""GPUs by name: what they hold and compute, for plans of runs on machines that are not this one."""

import re
from dataclasses import dataclass

from finetune_assets.errors import UserError
from finetune_assets.models.planning.hardware import Machine

UTILISATION = 0.45
"""Share of the published peak that a training run achieves where products are large. torchtune's
runs of Llama 3.2 3B on an A100 (its README, 2025) reach 0.5 to 0.57, compiled and packed."""


@dataclass(frozen=True)
class Gpu:
    """One kind of device, as its maker describes it."""

    name: str
    memory_gb: float
    """GiB that CUDA reports: less than the name says where memory has error correction."""
    tflops: float
    """Published dense peak of bf16 products (fp16 where there is no bf16), summed in float32."""
    bandwidth: float
    """Published GB/s of its memory."""
    bf16: bool = True

    def machine(self) -> Machine:
        """Return a machine with this device, without optional kernels."""
        return Machine(cuda=True, name=self.name, memory_gb=self.memory_gb, cores=8, bf16=self.bf16)


GPUS = (
    Gpu("B200 180GB", 178.4, 2250, 7700),
    Gpu("H200 141GB", 139.8, 989, 4800),
    Gpu("H100 80GB", 79.1, 989, 3350),
    Gpu("H100 PCIe 80GB", 79.1, 756, 2000),
    Gpu("A100 80GB", 79.2, 312, 2039),
    Gpu("A100 40GB", 39.4, 312, 1555),
    Gpu("L40S 48GB", 44.4, 362, 864),
    Gpu("RTX 6000 Ada 48GB", 47.5, 364, 960),
    Gpu("A6000 48GB", 47.5, 155, 768),
    Gpu("A40 48GB", 44.4, 150, 696),
    Gpu("RTX 5090 32GB", 31.4, 210, 1792),
    Gpu("RTX 4090 24GB", 23.6, 165, 1008),
    Gpu("RTX 3090 24GB", 23.7, 71, 936),
    Gpu("L4 24GB", 22.0, 121, 300),
    Gpu("A10G 24GB", 22.1, 70, 600),
    Gpu("A10 24GB", 22.1, 125, 600),
    Gpu("A30 24GB", 23.6, 165, 933),
    Gpu("V100 32GB", 31.7, 125, 900, bf16=False),
    Gpu("V100 16GB", 15.8, 125, 900, bf16=False),
    Gpu("T4 16GB", 14.6, 65, 320, bf16=False),
)
"""Peaks of NVIDIA's data sheets without sparsity; memory as CUDA's own messages give it."""


def gpu(name: str, where: str) -> Gpu:
    """Find the device that `A100 80GB`, `a100-80gb`, `NVIDIA A100-SXM4-80GB` or `L4` stands for.

    If none is called so, or several are, a UserError names the option or variable `where`.
    """
    asked = _words(name)
    near = [each for each in GPUS if _words(each.name) <= asked or asked <= _words(each.name)]
    found = sorted(near if asked else [], key=lambda each: len(_words(each.name)))
    if found and all(_words(found[0].name) <= _words(each.name) for each in found):
        return next((each for each in found if _words(each.name) == asked), found[0])
    raise UserError(
        where,
        f"'{name}' can mean more than one GPU" if found else f"no GPU is known as '{name}'",
        f"write one of: {', '.join(each.name for each in found or GPUS)}",
    )


_NOISE = {"nvidia", "tesla", "geforce", "rtx", "sxm", "sxm2", "sxm4", "sxm5", "hbm3", "generation"}


def _words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=\d) *gb\b", "gb", name.lower())
    return {word for word in re.split(r"[^a-z0-9]+", spaced) if word and word not in _NOISE}
