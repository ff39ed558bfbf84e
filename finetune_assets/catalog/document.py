"""A YAML file as a tree in which every node knows the file and the line where it stands."""

import re
from typing import Any

import yaml

from finetune_assets.errors import UserError


class _Loader(yaml.SafeLoader):
    """Reads 1e-8 as a number, as YAML 1.2 does; YAML 1.1 would have 1.0e-8 written."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def decode(content: bytes, uri: str) -> str:
    """Text of a file's bytes."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            uri, f"the file is not UTF-8: {error.reason}", "save it as UTF-8"
        ) from error


def read(text: str, uri: str) -> yaml.MappingNode:
    """The tree of a file's text, with anchors and `<<` resolved.

    Raises:
        UserError: broken YAML, no mapping, or a key that is there twice.
    """
    try:
        loader = _Loader(text)
        loader.name = uri  # which every mark then carries
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                uri, "the file is not a mapping of keys", "begin with `sources:` and `base:`"
            )
        _prepare(node, loader, set(), set())
    except yaml.YAMLError as error:
        raise _broken(error, uri) from error
    return node


def values(node: yaml.MappingNode) -> Any:
    """What a tree stands for, as plain Python values."""
    try:
        return _Loader("").construct_document(node)
    except yaml.YAMLError as error:
        raise _broken(error, node.start_mark.name) from error
    except ValueError as error:  # such as the date 2026-02-30
        raise UserError(node.start_mark.name, f"broken YAML: {error}", "quote the value") from error


def place(node: yaml.Node) -> str:
    """FILE:LINE of a node, lines from 1."""
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


def place_of(location: tuple[Any, ...], node: yaml.Node, *, whole: bool = False) -> str | None:
    """FILE:LINE of the innermost key of a location that is really written; None if none is, or,
    with `whole`, if not all of it is."""
    found = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            # Reversed, because a later key wins over one that came in by `<<`.
            pairs = reversed(node.value)
            pair = next(((k, v) for k, v in pairs if k.value == str(part)), None)
            if pair is None:
                return None if whole else found
            found, node = place(pair[0]), pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            found = place(node)
        elif whole:
            return None
    return found


def _broken(error: yaml.YAMLError, uri: str) -> UserError:
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}:{mark.line + 1}" if mark else uri
    problem = getattr(error, "problem", None) or "not valid YAML"
    return UserError(where, f"broken YAML: {problem}", "mend the line")


def _prepare(node: yaml.Node, loader: _Loader, inside: set[int], done: set[int]) -> None:
    """Resolve `<<` everywhere, after a look at the keys: of two equal ones YAML takes the last
    without a word."""
    if id(node) in inside:
        raise UserError(place(node), "the value contains itself", "remove the alias (`*`)")
    if id(node) in done or not isinstance(node, yaml.CollectionNode):
        return
    done.add(id(node))
    inside = inside | {id(node)}
    if isinstance(node, yaml.MappingNode):
        _require_keys_once(node)
        loader.flatten_mapping(node)
        for _, value in node.value:
            _prepare(value, loader, inside, done)
    else:
        for value in node.value:
            _prepare(value, loader, inside, done)


def _require_keys_once(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(place(key), "a key is a list or a mapping", "write a word")
        if key.value in seen:
            raise UserError(
                place(key),
                f"the key '{key.value}' is there twice, first on line {seen[key.value]}",
                "remove one",
            )
        seen[key.value] = key.start_mark.line + 1
