"""Reading dataset files, with errors that name the file, the key and the nearest valid key."""

import difflib
from dataclasses import dataclass
from typing import Any

import fsspec
from pydantic import ValidationError

from finetune_assets import settings
from finetune_assets.catalog import document
from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.document import Written
from finetune_assets.catalog.explain import explain
from finetune_assets.catalog.extends import locate, merged
from finetune_assets.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A dataset and where it was declared."""

    name: str
    uri: str
    config: Dataset

    def locate(self, path: str) -> str:
        """Resolve a path of the file: URIs and absolute paths stay, others are relative to it."""
        return locate(path, self.uri)


def names() -> list[str]:
    """Return the stems of the catalog's YAML files, sorted."""
    root = settings.catalog_uri()
    fs, folder = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()  # what an object store's client remembers hides new files
    if not fs.isdir(folder):
        remedy = f"create it or set {settings.CATALOG_VARIABLE}"
        raise UserError(root, "the catalog folder does not exist", remedy)
    files = (path.rsplit("/", 1)[-1] for path in fs.ls(folder, detail=False))
    return sorted(f.rsplit(".", 1)[0] for f in files if f.endswith((".yaml", ".yml")))


def load(name: str) -> Entry:
    """Read and validate one dataset file; a UserError tells what is missing or wrong."""
    root = settings.catalog_uri()
    fs, folder = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()
    for suffix in (".yaml", ".yml"):
        if fs.isfile(f"{folder}/{name}{suffix}"):
            uri = f"{root}/{name}{suffix}"
            text = document.decode(fs.cat_file(f"{folder}/{name}{suffix}"), uri)
            config, file = _parse(text, uri)
            entry = Entry(name, uri, config)
            _require_files(entry, file)
            return entry
    known = names()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    remedy = f"{hint}the catalog has: {', '.join(known) or '-'}"
    raise UserError(f"{root}/{name}.yaml", "no such dataset", remedy)


def _require_files(entry: Entry, file: Written) -> None:
    """Raise unless the files that a late step reads are there, before an early one begins."""
    named: dict[document.Location, str] = {}
    if (template := entry.config.base.chat_template) is not None:
        named["base", "chat_template"] = template
    for index, metric in enumerate(entry.config.evaluation.metrics):
        if not isinstance(metric, str):
            named["evaluation", "metrics", index, "database"] = metric.database
    for location, path in named.items():
        fs, located = fsspec.core.url_to_fs(entry.locate(path))
        if not fs.isfile(located):
            key = ".".join(str(part) for part in location if isinstance(part, str))
            where = document.place_of(location, file) or entry.uri
            raise UserError(where, f"`{key}`: no such file {located}", "mend the path")


def parse(text: str, uri: str) -> Dataset:
    """Validate the text of a dataset file, over what it extends.

    A UserError names the file and line of what is not YAML, not there or not valid.
    """
    return _parse(text, uri)[0]


def _parse(text: str, uri: str) -> tuple[Dataset, Written]:
    file = merged(text, uri)
    try:
        return Dataset.model_validate(document.plain(file)), file
    except ValidationError as error:
        raise explain(error, file) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a dataset file, for editors."""
    schema = Dataset.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "finetune-assets dataset"
    # The two shorthands that the loader accepts.
    base = schema["properties"]["base"]
    schema["properties"]["base"] = {"anyOf": [base, {"type": "string"}]}
    items = schema["properties"]["sources"]["items"]
    schema["properties"]["sources"]["items"] = {"anyOf": [items, {"type": "string"}]}
    # A file without sources is a recipe that others extend, and what it lacks may stand there.
    del schema["required"]
    schema["if"] = {"required": ["sources"], "not": {"required": ["extends"]}}
    schema["then"] = {"required": ["base"]}
    return schema
