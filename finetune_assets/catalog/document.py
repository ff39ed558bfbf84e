"""A YAML 1.2 file as values that know the file and line where they are written."""

from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from finetune_assets.errors import UserError

DEPTH = 64
"""Mappings and lists that may stand within one another."""
VALUES = 50_000
"""Values that a file may have with its aliases written out, which bounds the time of a reading."""

Location = tuple[Any, ...]
"""The keys and list indices that lead to a value."""


class Written(NamedTuple):
    """A value and its place; what a mapping or a list holds is again a `Written`."""

    place: str
    """FILE:LINE of the key or list item; of a whole file, the file."""
    value: Any


def decode(content: bytes, uri: str) -> str:
    """Return the text of a file's bytes; a UserError unless they are UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        cause = f"the file is not UTF-8: {error.reason} on line {line}"
        raise UserError(uri, cause, "save it as UTF-8") from error


def read(text: str, uri: str) -> Written:
    """Read the mapping that a file holds, with aliases and `<<` written out.

    A UserError tells of broken YAML, no mapping, a key that is there twice, a value that contains
    itself, or one beyond `DEPTH` or `VALUES`.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEPTH
    yaml.composer.warn_double_anchors = False  # an anchor may be set again
    try:
        node = yaml.compose(text)
    except Exception as error:  # the library lets some pass that are not its own
        raise _broken(error, text, uri) from error
    if not isinstance(node, MappingNode):
        remedy = "begin with `sources:` and `base:`"
        raise UserError(uri, "the file is not a mapping of keys", remedy)
    return Written(uri, _Reader(uri, yaml.constructor).value(node, ()))


def plain(written: Written) -> object:
    """Return a value without places, as plain dictionaries, lists and scalars."""
    value = written.value
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def place_of(location: Location, written: Written, *, whole: bool = False) -> str | None:
    """Return FILE:LINE of the innermost key of a location that is really written.

    With `whole`, return None unless all of the location is written.
    """
    found = None
    for part in location:
        value = written.value
        listed = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if not listed and not (isinstance(value, dict) and part in value):
            return None if whole else found
        written = value[part]
        found = written.place
    return found


def _broken(error: Exception, text: str, uri: str) -> UserError:
    line, problem, remedy = None, "not valid YAML", "mend the line"
    if isinstance(error, ReaderError):
        line, problem = text.count("\n", 0, error.position), "a character that no text has"
    elif isinstance(error, MarkedYAMLError) and error.problem_mark:
        line, problem = error.problem_mark.line, error.problem or problem
    if isinstance(error, MaxDepthExceededError):
        problem, remedy = f"nested more than {DEPTH} deep", "nest it less"
    elif problem.startswith("but "):  # the second half of a sentence
        problem = f"{getattr(error, 'context', '')}, {problem}"
    where = uri if line is None else f"{uri}:{line + 1}"
    return UserError(where, f"broken YAML: {problem}", remedy)


class _Reader:
    """Makes values of the nodes of one file."""

    def __init__(self, uri: str, constructor: SafeConstructor) -> None:
        self.uri, self.constructor, self.count = uri, constructor, 0

    def value(self, node: Node, around: tuple[Node, ...]) -> object:
        """Return the value of a node that stands in the nodes `around`."""
        self.count += 1
        if node in around:
            raise self.error(node, "the value contains itself", "remove the alias (`*`)")
        if self.count > VALUES or len(around) > DEPTH:
            cause = f"more than {VALUES} values or {DEPTH} levels, with aliases (`*`) written out"
            raise self.error(node, cause, "remove aliases")
        if isinstance(node, MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, (*around, node))
        if isinstance(node, SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            around = (*around, node)
            return [Written(self.place(item), self.value(item, around)) for item in node.value]
        try:
            if not isinstance(node, ScalarNode):
                self.constructor.construct_undefined(node)  # an error that names the tag
            return self.constructor.construct_object(node, deep=True)
        except MarkedYAMLError as error:
            raise self.error(node, f"broken YAML: {error.problem}", "mend the line") from error
        except Exception as error:  # such as the date 2026-02-30
            raise self.error(node, f"broken YAML: {error}", "quote the value") from error

    def mapping(self, node: MappingNode, around: tuple[Node, ...]) -> dict[Any, Written]:
        """Return a mapping over those that come in by `<<`."""
        values: dict[Any, Written] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self.error(key_node, "a key is a list or a mapping", "write a word")
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merges else self.value(key_node, around)
            if key in values:
                first = values[key].place.rpartition(":")[2]
                cause = f"the key '{key_node.value}' is there twice, first on line {first}"
                raise self.error(key_node, cause, "remove one")
            values[key] = Written(self.place(key_node), self.value(value_node, around))
        merged = values.pop("<<", Written("", []))
        for place, below in merged.value if isinstance(merged.value, list) else [merged]:
            if not isinstance(below, dict):
                raise UserError(place, "`<<` is no mapping", "write a mapping or a list of them")
            values = below | values
        return values

    def place(self, node: Node) -> str:
        return f"{self.uri}:{node.start_mark.line + 1}"

    def error(self, node: Node, cause: str, remedy: str) -> UserError:
        return UserError(self.place(node), cause, remedy)
