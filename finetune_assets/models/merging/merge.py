"""Base and what was trained as one model: merged tensor by tensor, compared by logits."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_assets.models.adapters.saving import ADAPTER_CONFIG
from finetune_assets.models.bases.layout import Layout
from finetune_assets.models.bases.weights import INDEX, copy_companions, shards, tensor_files
from finetune_assets.models.merging.update import Update


def merge(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    """Write the model that base and adapter are together, and count what was merged.

    Any LoRA (rsLoRA, DoRA, biases, modules trained whole) is computed in float32 and stored in the
    dtype of the base's tensor; shards, names and tokenizer files stay those of the base. Memory:
    one shard. A model that was tuned whole is taken as it is, as hard links where the file system
    has them. An adapter that is no LoRA, or does not fit the base, is a UserError.
    """
    copy_companions(base, out)
    if not (adapter / ADAPTER_CONFIG).exists():
        return _whole_model(adapter, out)
    layout = Layout.of(base)
    update = Update.read(adapter, layout)
    untied = _untied(layout, update)
    size = sum(_merge_shard(shard, layout, update, untied, out) for shard in shards(base))
    update.require_all_used(adapter)
    if (base / INDEX).exists():
        _write_index(out, size)
    if untied:
        _write_untied(out)
    layers = {key.split(".lora_")[0] for key in update.tensors if ".lora_" in key}
    return {
        "merged_layers": len(layers),
        "replaced_tensors": sum(".lora_" not in key for key in update.tensors),
        "untied": sorted(untied),
    }


def _merge_shard(
    shard: Path, layout: Layout, update: Update, untied: dict[str, str], out: Path
) -> int:
    """Write one shard; return the bytes of its tensors."""
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(shard, framework="pt") as file:
        groups: dict[str, list[str]] = {}
        for stored in file.keys():  # noqa: SIM118 - not a dict
            groups.setdefault(layout.names.get(stored, stored), []).append(stored)
        for name, group in groups.items():
            weights = {stored: file.get_tensor(stored) for stored in group}
            tensors |= update.apply(name, weights)
            for tied, source in untied.items():
                if source == name and tied not in layout.names.values():
                    # An own copy: safetensors stores no tensor twice.
                    copies = {layout.stored_name(tied): w.clone() for w in weights.values()}
                    tensors |= update.apply(tied, copies)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, out / shard.name, metadata=file.metadata())
    return sum(tensor.nbytes for tensor in tensors.values())


def _untied(layout: Layout, update: Update) -> dict[str, str]:
    """Tied tensors that the adapter makes differ from their source, by their names.

    An adapter on the output head of a model whose head is its embedding changes the head alone, as
    one on the embedding changes the embedding alone: the merged model has to store both.
    """
    return {
        tied: source
        for tied, source in layout.model.all_tied_weights_keys.items()
        if update.touches(tied) or update.touches(source)
    }


def _write_untied(out: Path) -> None:
    path = out / "config.json"
    config = json.loads(path.read_text())
    for section in (config, config.get("text_config")):
        if section is not None:
            section["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2) + "\n")


def _write_index(out: Path, size: int) -> None:
    """The index of a model in several shards: that of the base, and what was untied."""
    files = sorted((name, path.name) for name, path in tensor_files(out).items())
    index = {"metadata": {"total_size": size}, "weight_map": dict(files)}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _whole_model(tuned: Path, out: Path) -> dict[str, Any]:
    names = [path.name for path in shards(tuned)]
    for name in names:
        try:
            os.link(tuned / name, out / name)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(tuned / name, out / name)
    if (tuned / INDEX).exists():
        shutil.copyfile(tuned / INDEX, out / INDEX)
    return {"merged_layers": 0, "replaced_tensors": len(tensor_files(out)), "untied": []}


def parity(
    base: Path, adapter: Path, merged: Path, prompts: list[list[int]]
) -> dict[str, float | int]:
    """Compare logits of what was trained (by PEFT, float32) with those of the merged model.

    The result has the largest absolute difference, the same relative to the logits' range, and the
    number of positions at which the two disagree on the most likely token of the real `prompts`.
    """
    whole = not (adapter / ADAPTER_CONFIG).exists()
    pair = AutoModelForCausalLM.from_pretrained(adapter if whole else base, dtype=torch.float32)
    expected = _logits(pair if whole else PeftModel.from_pretrained(pair, adapter), prompts)
    del pair
    actual = _logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32), prompts)
    pairs = list(zip(actual, expected, strict=True))
    difference = max(float((a - e).abs().max()) for a, e in pairs)
    span = max(float(e.max() - e.min()) for e in expected)
    disagree = sum(int((a.argmax(-1) != e.argmax(-1)).sum()) for a, e in pairs)
    return {
        "max_logit_difference": difference,
        "relative_difference": difference / span,
        "positions": sum(len(ids) for ids in prompts),
        "top_token_disagreements": disagree,
    }


def _logits(model: PreTrainedModel | PeftModel, prompts: list[list[int]]) -> list[torch.Tensor]:
    model.eval()
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids])).logits[0] for ids in prompts]
