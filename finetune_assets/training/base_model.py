"""The task `base_models`: a pinned base as safetensors with its tokenizer and template."""

import re
import shutil
from pathlib import Path
from typing import Any

from finetune_assets.errors import UserError

REVISION = re.compile(r"[0-9a-f]{40}")
NEEDED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


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


def gguf_file(model: str, where: str) -> Path:
    """The GGUF inside an installed package that `package:PACKAGE/FILE.gguf` names."""
    from importlib.util import find_spec

    package, _, file = model.removeprefix("package:").partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            where, f"base model '{model}': the package is not installed", f"pip install {package}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / file).is_file():
        there = ", ".join(p.name for p in folder.glob("*.gguf")) or "no GGUF file"
        raise UserError(
            where, f"base model '{model}': no such file in the package", f"it has: {there}"
        )
    return folder / file


def local_folder(model: str, where: str) -> Path:
    """A folder with a model in the Hugging Face layout."""
    folder = Path(model)
    for needed in ("config.json", "tokenizer_config.json"):
        if not (folder / needed).is_file():
            raise UserError(
                where,
                f"base model '{model}' is no model folder: it has no {needed}",
                "give a folder, `hub:ORG/NAME@REVISION` or `package:PACKAGE/FILE.gguf`",
            )
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            where, f"base model '{model}' has no .safetensors weights", "convert it to safetensors"
        )
    return folder


def hub_snapshot(model: str, where: str, *, weights: bool = True) -> Path:
    """A folder with the files of a pinned hub revision, from the cache or the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = model.removeprefix("hub:").partition("@")
    if not REVISION.fullmatch(revision):
        raise UserError(
            where,
            f"base model '{model}' is not pinned to a commit",
            "write `hub:ORG/NAME@` and the 40 hex digits of the revision",
        )
    patterns = NEEDED if weights else NEEDED[1:]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            where,
            f"base model '{model}' cannot be had from the hub: {error}",
            "check the name, the revision, the network and HF_TOKEN",
        ) from error


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

    from finetune_assets.storage.fingerprint import digest
    from finetune_assets.tokenization.render import require_template, stop_token_ids

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
