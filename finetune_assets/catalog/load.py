"""Reading dataset files, with errors that name the file, the key and the nearest valid key."""

import difflib
import os
from dataclasses import dataclass
from typing import Any

import fsspec
import yaml
from pydantic import BaseModel, ValidationError

from finetune_assets import settings
from finetune_assets.catalog.config import Dataset
from finetune_assets.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A dataset and where it was declared."""

    name: str
    uri: str
    config: Dataset

    def locate(self, path: str) -> str:
        """Resolve a path of the file: URIs and absolute paths stay, others are relative to it."""
        if "://" in path or path.startswith("/"):
            return path
        folder = self.uri.rsplit("/", 1)[0]
        if "://" in folder:
            return f"{folder}/{path}"
        return os.path.normpath(f"{folder}/{path}")


def names() -> list[str]:
    """Stems of the catalog's YAML files, sorted."""
    root = settings.catalog_uri()
    fs, folder = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()  # what an object store's client remembers hides new files
    if not fs.isdir(folder):
        raise UserError(
            root,
            "the catalog folder does not exist",
            f"create it or set {settings.CATALOG_VARIABLE}",
        )
    files = (path.rsplit("/", 1)[-1] for path in fs.ls(folder, detail=False))
    return sorted(f.rsplit(".", 1)[0] for f in files if f.endswith((".yaml", ".yml")))


def load(name: str) -> Entry:
    """Read and validate one dataset file.

    Raises:
        UserError: no such file, broken YAML, or a key or value that is not valid.
    """
    root = settings.catalog_uri()
    fs, folder = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()
    for suffix in (".yaml", ".yml"):
        if fs.isfile(f"{folder}/{name}{suffix}"):
            uri = f"{root}/{name}{suffix}"
            entry = Entry(name, uri, parse(fs.cat_file(f"{folder}/{name}{suffix}").decode(), uri))
            _require_files(entry)
            return entry
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UserError(
        f"{root}/{name}.yaml",
        "no such dataset",
        f"{hint}the catalog has: {', '.join(names()) or '-'}",
    )


def _require_files(entry: Entry) -> None:
    """Files that a late step reads must be there before an early one begins."""
    named = {"base.chat_template": entry.config.base.chat_template}
    for metric in entry.config.evaluation.metrics:
        if not isinstance(metric, str):
            named["evaluation.metrics.database"] = metric.database
    for key, path in named.items():
        if path is None:
            continue
        fs, located = fsspec.core.url_to_fs(entry.locate(path))
        if not fs.isfile(located):
            raise UserError(entry.uri, f"`{key}`: no such file {located}", "mend the path")


def parse(text: str, uri: str) -> Dataset:
    """Validate the text of a dataset file."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{uri}:{mark.line + 1}" if mark else uri
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise UserError(where, f"broken YAML: {problem}", "mend the line") from error
    _require_keys_once(yaml.compose(text), uri)
    if not isinstance(data, dict):
        raise UserError(
            uri, "the file is not a mapping of keys", "begin with `sources:` and `base:`"
        )
    try:
        return Dataset.model_validate(data)
    except ValidationError as error:
        raise _explain(error, uri, text) from error


def _require_keys_once(node: yaml.Node | None, uri: str) -> None:
    """YAML takes the last of two equal keys without a word."""
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _require_keys_once(value, uri)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in seen:
            raise UserError(
                f"{uri}:{line}",
                f"the key '{key.value}' is there twice, first on line {seen[key.value]}",
                "remove one",
            )
        seen[key.value] = line
        _require_keys_once(value, uri)


def _explain(error: ValidationError, uri: str, text: str) -> UserError:
    causes, remedies = [], []
    first = error.errors()[0]
    for item in error.errors():
        location = [part for part in item["loc"] if part not in _UNION_BRANCHES]
        key = ".".join(str(part) for part in location) or "file"
        if item["type"] == "extra_forbidden":
            valid = _valid_keys(location[:-1])
            near = difflib.get_close_matches(str(location[-1]), valid, n=1)
            causes.append(f"unknown key '{key}'")
            hint = f"did you mean '{near[0]}'?" if near else f"valid here: {', '.join(valid)}"
            remedies.append(hint)
        elif item["type"] == "missing":
            causes.append(f"missing key '{key}'")
            remedies.append(f"add '{key}'")
        else:
            message = item["msg"].removeprefix("Value error, ")
            causes.append(f"'{key}' is {item['input']!r}: {message}" if location else message)
            remedies.append(f"mend '{key}'")
    line = _line_of(first["loc"], text)
    where = f"{uri}:{line}" if line else uri
    unique = list(dict.fromkeys(remedies))
    return UserError(where, "; ".join(dict.fromkeys(causes)), "; ".join(unique))


_UNION_BRANCHES = {"constrained-int", "constrained-float", "SqlExecution", "str", "int", "float"}


def _valid_keys(location: list[Any]) -> list[str]:
    model: type[BaseModel] = Dataset
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)


def _line_of(location: tuple[Any, ...], text: str) -> int | None:
    """Line of the innermost key that the file really contains, from 1."""
    node, line = yaml.compose(text), None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                continue
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def json_schema() -> dict[str, Any]:
    """JSON Schema of a dataset file, for editors."""
    schema = Dataset.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "finetune-assets dataset"
    # The two shorthands that the loader accepts.
    base = schema["properties"]["base"]
    schema["properties"]["base"] = {"anyOf": [base, {"type": "string"}]}
    items = schema["properties"]["sources"]["items"]
    schema["properties"]["sources"]["items"] = {"anyOf": [items, {"type": "string"}]}
    return schema
