"""`extends:` of a dataset file: recipes that several datasets share, merged beneath each."""

import difflib
import os
import re
from typing import Any
from urllib.parse import quote

import fsspec
import yaml

from finetune_assets.catalog.document import decode, place, read
from finetune_assets.errors import UserError

PATHS = (
    ("sources", "*", "path"),
    ("sources", "*", "connection"),
    ("base", "model"),
    ("base", "chat_template"),
    ("contamination", "benchmarks", "*"),
    ("evaluation", "metrics", "*", "database"),
)
"""Keys whose values are relative to the file that they stand in; `*` is every item of a list."""


def locate(path: str, uri: str) -> str:
    """Resolve a path that stands in a file: URIs and absolute paths stay, others are relative to
    the file."""
    if "://" in path or path.startswith("/"):
        return path
    scheme, separator, whole = uri.rpartition("://")
    folder = whole.rpartition("/")[0]
    return f"{scheme}{separator}{os.path.normpath(os.path.join(folder, path))}"


def merged(text: str, uri: str) -> yaml.MappingNode:
    """The tree of a dataset file over the trees of the files that it extends.

    Mappings are merged key by key, the extending file wins, lists and scalars replace. Every node
    keeps the mark of the file it stands in, and paths of extended files are made absolute.

    Raises:
        UserError: an extended file is missing, broken, or extends itself.
    """
    return _over_its_parts(_spelt_out(read(text, uri)), uri, (uri,))


def _over_its_parts(node: yaml.MappingNode, uri: str, chain: tuple[str, ...]) -> yaml.MappingNode:
    below: yaml.MappingNode | None = None
    for reference in _references(node):
        part = _part(reference, locate(reference.value, uri), chain)
        below = part if below is None else _merge(below, part)
    return node if below is None else _merge(below, node)


def _references(node: yaml.MappingNode) -> list[yaml.ScalarNode]:
    """The values under `extends:`."""
    declared = next((value for key, value in node.value if key.value == "extends"), None)
    if declared is None:
        return []
    listed = declared.value if isinstance(declared, yaml.SequenceNode) else [declared]
    for item in listed:
        if not isinstance(item, yaml.ScalarNode) or item.tag != "tag:yaml.org,2002:str":
            raise UserError(
                place(item), "`extends` is not a path", "write a path, a URI, or a list of them"
            )
    return listed


def _part(reference: yaml.ScalarNode, uri: str, chain: tuple[str, ...]) -> yaml.MappingNode:
    """An extended file over those that it extends itself, without its `extends`."""
    if uri in chain:
        circle = " -> ".join([*chain[chain.index(uri) :], uri])
        raise UserError(
            place(reference), f"`extends` goes round in a circle: {circle}", "remove one of them"
        )
    node = _spelt_out(read(_text(reference, uri), uri))
    for keys in PATHS:
        node = _absolute(node, keys, uri)
    whole = _over_its_parts(node, uri, (*chain, uri))
    pairs = [(key, value) for key, value in whole.value if key.value != "extends"]
    return yaml.MappingNode(whole.tag, pairs, whole.start_mark, whole.end_mark)


def _text(reference: yaml.ScalarNode, uri: str) -> str:
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        fs.invalidate_cache()  # what an object store's client remembers hides a new version
        content = fs.cat_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        remedy = _hint(fs, path) or "mend the path"
        raise UserError(place(reference), f"`extends`: no such file {uri}", remedy) from error
    except Exception as error:  # every kind of store has errors of its own
        raise UserError(
            place(reference),
            f"`extends`: {uri} cannot be read: {error}",
            "mend the path, or give this process access",
        ) from error
    return decode(content, uri)


def _hint(fs: Any, path: str) -> str | None:
    folder, _, name = path.rpartition("/")
    if not fs.isdir(folder):
        return None
    there = [p.rpartition("/")[2] for p in fs.ls(folder, detail=False)]
    near = difflib.get_close_matches(name, there, n=1)
    return f"did you mean '{near[0]}'?" if near else None


def _merge(below: yaml.MappingNode, above: yaml.MappingNode) -> yaml.MappingNode:
    pairs = {key.value: (key, value) for key, value in below.value}
    for key, value in above.value:
        old = pairs[key.value][1] if key.value in pairs else None
        if isinstance(old, yaml.MappingNode) and isinstance(value, yaml.MappingNode):
            value = _merge(old, value)
        pairs[key.value] = (key, value)
    return yaml.MappingNode(above.tag, list(pairs.values()), above.start_mark, above.end_mark)


def _spelt_out(node: yaml.MappingNode) -> yaml.MappingNode:
    """`base: MODEL` and sources that are paths alone as the mappings that they are short for."""

    def mapping(key: str, value: yaml.Node) -> yaml.Node:
        if value.tag != _STR:
            return value
        named = yaml.ScalarNode(_STR, key, value.start_mark, value.end_mark)
        return yaml.MappingNode(_MAP, [(named, value)], value.start_mark, value.end_mark)

    def spelt_out(key: str, value: yaml.Node) -> yaml.Node:
        if key == "base":
            return mapping("model", value)
        if key != "sources" or not (value.tag == _STR or isinstance(value, yaml.SequenceNode)):
            return value
        items = [value] if value.tag == _STR else value.value
        items = [mapping("path", item) for item in items]
        return yaml.SequenceNode(_SEQ, items, value.start_mark, value.end_mark)

    pairs = [(key, spelt_out(key.value, value)) for key, value in node.value]
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)


_STR, _MAP, _SEQ = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))


def _absolute(node: Any, keys: tuple[str, ...], uri: str) -> Any:
    """The tree with the values under `keys`, which are relative to their file, made absolute."""
    if not keys and isinstance(node, yaml.ScalarNode) and node.tag == _STR:
        path = _located(node.value, uri)
        return yaml.ScalarNode(_STR, path, node.start_mark, node.end_mark, node.style)
    if keys and isinstance(node, yaml.MappingNode):
        pairs = [
            (key, _absolute(value, keys[1:], uri) if key.value == keys[0] else value)
            for key, value in node.value
        ]
        return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)
    if keys and keys[0] == "*" and isinstance(node, yaml.SequenceNode):
        items = [_absolute(item, keys[1:], uri) for item in node.value]
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    return node


def _located(value: str, uri: str) -> str:
    if value.startswith(("hub:", "package:")):
        return value
    sqlite = re.match(r"sqlite:/{2,3}(?![/$])(.*)", value)
    if sqlite and "://" not in uri:
        return f"sqlite:///{quote(uri.rpartition('/')[0])}/{sqlite[1]}"
    return locate(value, uri)
