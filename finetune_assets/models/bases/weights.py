"""The files of a model folder: shards, the tensors in them, and what lies beside them."""

import json
import math
import shutil
from pathlib import Path

from safetensors import safe_open

from finetune_assets.storage.artifacts import MANIFEST

INDEX = "model.safetensors.index.json"


def shards(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads; Mistral's folders hold others too."""
    if (folder / INDEX).exists():
        named = json.loads((folder / INDEX).read_text())["weight_map"].values()
        return [folder / name for name in sorted(set(named))]
    single = folder / "model.safetensors"
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return the shard of every tensor, by the tensor's name."""
    return {name: shard for shard in shards(folder) for name in slices(shard)}


def dtypes(folder: Path) -> dict[str, str]:
    """Return the dtype of every tensor, in safetensors' name, by the tensor's name."""
    return {n: d for shard in shards(folder) for n, (d, _) in slices(shard).items()}


def stored_dtype(folder: Path) -> str:
    """Return the dtype of the largest tensor, in safetensors' name."""
    sizes = ((size, dtype) for shard in shards(folder) for dtype, size in slices(shard).values())
    return max(sizes)[1]


def slices(shard: Path) -> dict[str, tuple[str, int]]:
    """Return dtype and elements of each tensor, from the header alone."""
    with safe_open(shard, framework="pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return {n: (s.get_dtype(), math.prod(s.get_shape())) for n, s in found.items()}


def copy_companions(folder: Path, out: Path) -> None:
    """Copy everything but the weights: configuration, tokenizer, template.

    The manifest is about `folder`, and the index about its shards; `out` gets its own.
    """
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (MANIFEST, INDEX):
            shutil.copy2(path, out / path.name)
