"""The task `base_models`: a pinned base as safetensors with its tokenizer and template."""

import shutil
from pathlib import Path
from typing import Any

from finetune_assets.errors import UserError
from finetune_assets.models.bases.reference import NEEDED, gguf_file, hub_snapshot, local_folder


def prepare(model: str, chat_template: Path | None, out: Path, where: str) -> dict[str, Any]:
    """Write the base into `out` and return statistics.

    Args:
        model: a local folder, `hub:ORG/NAME@REVISION`, or `package:PACKAGE/FILE.gguf`.
        chat_template: file whose text replaces the base's own template.
        where: the dataset file, named in errors.

    Raises:
        UserError: the base cannot be found, is not pinned, or has no chat template.
    """
    if model.startswith("package:"):
        _from_gguf(gguf_file(model, where), out)
    elif model.startswith("hub:"):
        _copy(hub_snapshot(model, where), out)
    else:
        _copy(local_folder(model, where), out)
    if chat_template is not None:
        _set_template(chat_template, out, where)
    return _describe(out, where)


def _copy(source: Path, out: Path) -> None:
    for pattern in NEEDED:
        for path in source.glob(pattern):
            shutil.copyfile(path, out / path.name)


def _from_gguf(file: Path, out: Path) -> None:
    """Dequantise to float32, which holds every value of the GGUF exactly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
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


def _set_template(path: Path, out: Path, where: str) -> None:
    from transformers import AutoTokenizer

    if not path.is_file():
        raise UserError(where, f"`base.chat_template`: no such file {path}", "mend the path")
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.chat_template = path.read_text()
    tokenizer.save_pretrained(out)


def _describe(out: Path, where: str) -> dict[str, Any]:
    from transformers import AutoConfig, AutoTokenizer

    from finetune_assets.models.tokenization.render import require_template, stop_token_ids
    from finetune_assets.storage.fingerprint import digest

    config, tokenizer = AutoConfig.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    template = require_template(tokenizer, where)
    stops = stop_token_ids(tokenizer, where)
    return {
        "architecture": (config.architectures or [config.model_type])[0],
        "parameters": _parameters(out),
        "context_length": getattr(config, "max_position_embeddings", None),
        "vocabulary": len(tokenizer),
        "template_fingerprint": digest(template),
        "stop_tokens": tokenizer.convert_ids_to_tokens(stops),
        "bytes": sum(p.stat().st_size for p in out.glob("*.safetensors")),
    }


def _parameters(folder: Path) -> int:
    import math

    from safetensors import safe_open

    total = 0
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            total += sum(math.prod(file.get_slice(n).get_shape()) for n in file.keys())  # noqa: SIM118
    return total
