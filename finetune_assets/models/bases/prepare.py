"""The task `base_models`: a pinned base as safetensors with its tokenizer and template."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from finetune_assets.models.bases.reference import NEEDED, BaseReference
from finetune_assets.models.bases.weights import slices
from finetune_assets.models.tokenization.render import require_template, stop_token_ids
from finetune_assets.storage.fingerprint import digest


def prepare(base: BaseReference, out: Path) -> dict[str, Any]:
    """Write the base into `out` and return statistics; without a template it is a UserError."""
    source = base.fetch()
    if base.is_gguf:
        _convert_gguf(source, out, base.gguf_option)
    else:
        for pattern in NEEDED:
            for path in source.glob(pattern):
                shutil.copyfile(path, out / path.name)
    if (template := base.chat_template_text()) is not None:
        tokenizer = AutoTokenizer.from_pretrained(out)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(out)
    return _describe(out, base.where)


def _convert_gguf(source: Path, out: Path, option: dict[str, str]) -> None:
    """Dequantise to float32, which holds every value of the GGUF exactly."""
    tokenizer = AutoTokenizer.from_pretrained(source, **option)
    loaded = AutoModelForCausalLM.from_pretrained(source, **option, dtype=torch.float32)
    # The loaded model keeps a quantization_config and refuses to be saved: re-create it without.
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    config = type(loaded.config).from_dict(values)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _describe(out: Path, where: str) -> dict[str, Any]:
    config, tokenizer = AutoConfig.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    template = require_template(tokenizer, where)
    stops = stop_token_ids(tokenizer, where)
    files = list(out.glob("*.safetensors"))
    return {
        "architecture": (config.architectures or [config.model_type])[0],
        "parameters": sum(size for file in files for _, size in slices(file).values()),
        "context_length": getattr(config, "max_position_embeddings", None),
        "vocabulary": len(tokenizer),
        "template_fingerprint": digest(template),
        "stop_tokens": tokenizer.convert_ids_to_tokens(stops),
        "bytes": sum(file.stat().st_size for file in files),
    }
