"""What the name of a base means: a file in a package, a folder, or a pinned revision of the hub."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_assets.catalog.load import Entry
from finetune_assets.errors import UserError

REVISION = re.compile(r"[0-9a-f]{40}")


NEEDED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def gguf_file(model: str, where: str) -> Path:
    """The GGUF inside an installed package that `package:PACKAGE/FILE.gguf` names."""
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


def load_tokenizer(entry: Entry) -> Any:
    """The base's tokenizer with the declared template, without its weights."""
    from transformers import AutoTokenizer

    base = entry.config.base
    if base.model.startswith("package:"):
        file = gguf_file(base.model, entry.uri)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    elif base.model.startswith("hub:"):
        tokenizer = AutoTokenizer.from_pretrained(
            hub_snapshot(base.model, entry.uri, weights=False)
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(local_folder(entry.locate(base.model), entry.uri))
    if base.chat_template:
        path = Path(entry.locate(base.chat_template))
        if not path.is_file():
            raise UserError(
                entry.uri, f"`base.chat_template`: no such file {path}", "mend the path"
            )
        tokenizer.chat_template = path.read_text()
    return tokenizer
