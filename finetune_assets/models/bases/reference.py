"""The base that a dataset file names: a file in a package, a folder, or a revision of the hub."""

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from finetune_assets.catalog.load import Entry
from finetune_assets.errors import UserError
from finetune_assets.storage.fingerprint import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""The files of a model folder that are used: weights first, then what is beside them."""

Config = dict[str, Any]
"""The values of a `config.json`."""

_GGUF_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
"""Keys of a `config.json` by those of a GGUF header, which the architecture's name goes before."""


@dataclass(frozen=True)
class BaseReference:
    """A base model by its name, with the chat template that it is to have.

    Whatever needs the base's files raises a UserError if they cannot be had.
    """

    model: str
    """`package:PACKAGE/FILE.gguf`, `hub:ORG/NAME@REVISION`, or the path of a model folder."""
    chat_template: str | None
    """URI of a file whose text replaces the base's own template."""
    where: str
    """The dataset file, named in errors."""

    @classmethod
    def of(cls, entry: Entry) -> "BaseReference":
        """Return the base of a dataset, with paths resolved."""
        model, template = entry.config.base.model, entry.config.base.chat_template
        if not model.startswith(("package:", "hub:")):
            model = entry.locate(model)
        return cls(model, entry.locate(template) if template else None, entry.uri)

    @property
    def is_gguf(self) -> bool:
        """Whether the base is a GGUF file."""
        return self.model.startswith("package:")

    @property
    def gguf_option(self) -> dict[str, str]:
        """The keyword that makes transformers read the GGUF file of the folder, if it is one."""
        return {"gguf_file": Path(self.model).name} if self.is_gguf else {}

    def fetch(self, *, weights: bool = True) -> Path:
        """Return the folder with the base's files; those of the hub are downloaded if need be."""
        if self.is_gguf:
            return self._gguf_file().parent
        if self.model.startswith("hub:"):
            return self._hub_snapshot(weights)
        return self._local_folder()

    def identity(self) -> Config:
        """Return what tells this base from others, for fingerprints.

        Files are told apart by size and time of change; a false alarm costs a copy, after which
        the data version, a hash of the weights, is what it was.
        """
        files: list[Path] = []
        if self.is_gguf:
            files = [self._gguf_file()]
        elif not self.model.startswith("hub:"):
            files = sorted(path for path in self._local_folder().iterdir() if path.is_file())
        text = self.chat_template_text()
        return {
            "model": self.model,
            "files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files],
            "template": digest(text) if text else None,
        }

    def chat_template_text(self) -> str | None:
        """Return the text of the declared chat template, if one is declared."""
        if self.chat_template is None:
            return None
        try:
            with fsspec.open(self.chat_template, "r") as file:
                return file.read()  # pyright: ignore
        except (FileNotFoundError, IsADirectoryError) as error:
            raise UserError(
                self.where,
                f"`base.chat_template`: no such file {self.chat_template}",
                "mend the path",
            ) from error

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer with the declared chat template; the weights are not needed."""
        from transformers import AutoTokenizer

        folder = self.fetch(weights=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, **self.gguf_option)
        if (text := self.chat_template_text()) is not None:
            tokenizer.chat_template = text
        return tokenizer

    def config(self) -> Config:
        """Read the `config.json`, or what a GGUF file's header says of the same; without torch."""
        if self.is_gguf:
            return _gguf_config(self._gguf_file())
        return json.loads((self.fetch(weights=False) / "config.json").read_text())

    def context_length(self) -> int | None:
        """Return the tokens that the model can attend to, if its architecture has a limit."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.fetch(weights=False), **self.gguf_option)
        return getattr(config, "max_position_embeddings", None)

    def _error(self, cause: str, remedy: str) -> UserError:
        return UserError(self.where, f"base model '{self.model}'{cause}", remedy)

    def _gguf_file(self) -> Path:
        package, _, file = self.model.removeprefix("package:").partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise self._error(": the package is not installed", f"pip install {package}")
        folder = Path(next(iter(spec.submodule_search_locations)))
        if not (folder / file).is_file():
            there = ", ".join(p.name for p in folder.glob("*.gguf")) or "no GGUF file"
            raise self._error(": no such file in the package", f"it has: {there}")
        return folder / file

    def _local_folder(self) -> Path:
        folder = Path(self.model)
        for needed in ("config.json", "tokenizer_config.json"):
            if not (folder / needed).is_file():
                raise self._error(
                    f" is no model folder: it has no {needed}",
                    "give a folder, `hub:ORG/NAME@REVISION` or `package:PACKAGE/FILE.gguf`",
                )
        if not list(folder.glob("*.safetensors")):
            raise self._error(" has no .safetensors weights", "convert it to safetensors")
        return folder

    def _hub_snapshot(self, weights: bool) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        name, _, revision = self.model.removeprefix("hub:").partition("@")
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise self._error(
                " is not pinned to a commit",
                "write `hub:ORG/NAME@` and the 40 hex digits of the revision",
            )
        patterns = NEEDED if weights else NEEDED[1:]
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise self._error(
                f" cannot be had from the hub: {error}",
                "check the name, the revision, the network and HF_TOKEN",
            ) from error


def _gguf_config(file: Path) -> Config:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    fields = reader.fields
    family = fields["general.architecture"].contents()
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config: Config = {"model_type": family, "tie_word_embeddings": tied}
    for theirs, ours in _GGUF_KEYS.items():
        if field := fields.get(f"{family}.{theirs}"):
            config[ours] = field.contents()
    config.setdefault("vocab_size", len(fields["tokenizer.ggml.tokens"].data))
    return config
