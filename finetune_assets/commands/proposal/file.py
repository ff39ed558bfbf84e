"""The file that `finetune init` writes: its text, and its place in the catalog."""

import sys
import textwrap
from io import StringIO
from pathlib import Path

import fsspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML

from finetune_assets import settings
from finetune_assets.errors import UserError


def require_free(name: str) -> None:
    """Raise if the catalog has a dataset of this name."""
    fs, folder = fsspec.core.url_to_fs(settings.catalog_uri())
    for suffix in (".yaml", ".yml"):
        if fs.exists(f"{folder}/{name}{suffix}"):
            uri = f"{settings.catalog_uri()}/{name}{suffix}"
            remedy = "choose another name, or overwrite it with --force"
            raise UserError(uri, "the dataset is there already", remedy)


def write(name: str, text: str, beside: dict[str, str]) -> list[str]:
    """Write a dataset file and what is missing beside it; return the names of the files written."""
    fs, folder = fsspec.core.url_to_fs(settings.catalog_uri())
    fs.makedirs(folder, exist_ok=True)
    missing = {k: v for k, v in beside.items() if not fs.exists(f"{folder}/{k}")}
    written = missing | {f"{name}.yaml": text}
    for file, content in written.items():
        fs.pipe_file(f"{folder}/{file}", content.encode())
    return list(written)


def render(**keys: object) -> str:
    """Return the dataset file as text; strings of the data are quoted or made comments."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"yaml": _yaml, "block": _block, "comment": _comment}
    return environment.get_template("dataset.yaml.j2").render(keys)


def _yaml(value: object) -> str:
    """Return one line of YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = sys.maxsize
    yaml.default_flow_style = True
    if isinstance(value, str) and not value.isprintable():
        yaml.default_style = '"'  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue().removesuffix("\n").removesuffix("\n...")


def _block(text: str, indent: int) -> str:
    """Return a text of several lines as they are."""
    return "\n".join(["|-", *(f"{' ' * indent}{line}" for line in text.split("\n"))])


def _comment(text: str, indent: int = 0, hanging: int = 0) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    start = f"{' ' * indent}# "
    return textwrap.fill(
        printable,
        width=98,
        initial_indent=start,
        subsequent_indent=start + " " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
