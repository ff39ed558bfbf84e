"""`extends:` of a dataset file: recipes that several datasets share, merged beneath each."""

import difflib
import os
import re
from urllib.parse import quote

import fsspec

from finetune_assets.catalog.document import Written, decode, read
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
    """Resolve a path of a file: URIs and absolute paths stay, others are relative to the file."""
    if "://" in path or path.startswith("/"):
        return path
    scheme, separator, whole = uri.rpartition("://")
    folder = whole.rpartition("/")[0]
    return f"{scheme}{separator}{os.path.normpath(os.path.join(folder, path))}"


def merged(text: str, uri: str) -> Written:
    """Read a dataset file over the files that it extends.

    Mappings are merged key by key, the extending file wins, lists and scalars replace. Every value
    keeps the place where it is written, and paths of extended files are made absolute. A UserError
    tells of an extended file that is missing, broken, or extends itself.
    """
    return _over_its_parts(_spelt_out(read(text, uri)), uri, (uri,))


def _over_its_parts(file: Written, uri: str, chain: tuple[str, ...]) -> Written:
    extends = file.value.get("extends", Written(uri, []))
    below = Written(uri, {})
    for place, reference in extends.value if isinstance(extends.value, list) else [extends]:
        if not isinstance(reference, str):
            remedy = "write a path, a URI, or a list of them"
            raise UserError(place, "`extends` is not a path", remedy)
        below = _merge(below, _part(locate(reference, uri), place, chain))
    return _merge(below, file)


def _part(uri: str, place: str, chain: tuple[str, ...]) -> Written:
    """Read an extended file over those that it extends itself, without its `extends`."""
    if uri in chain:
        circle = " -> ".join([*chain[chain.index(uri) :], uri])
        raise UserError(place, f"`extends` goes round in a circle: {circle}", "remove one of them")
    file = _spelt_out(read(_text(uri, place), uri))
    for keys in PATHS:
        file = _absolute(file, keys, uri)
    whole = _over_its_parts(file, uri, (*chain, uri))
    whole.value.pop("extends", None)
    return whole


def _text(uri: str, place: str) -> str:
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        fs.invalidate_cache()  # what an object store's client remembers hides a new version
        content = fs.cat_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        remedy = _hint(fs, path) or "mend the path"
        raise UserError(place, f"`extends`: no such file {uri}", remedy) from error
    except Exception as error:  # every kind of store has errors of its own
        cause = f"`extends`: {uri} cannot be read: {error}"
        remedy = "mend the path, or give this process access"
        raise UserError(place, cause, remedy) from error
    return decode(content, uri)


def _hint(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    folder, _, name = path.rpartition("/")
    if not fs.isdir(folder):
        return None
    there = [p.rpartition("/")[2] for p in fs.ls(folder, detail=False)]
    near = difflib.get_close_matches(name, there, n=1)
    return f"did you mean '{near[0]}'?" if near else None


def _merge(below: Written, above: Written) -> Written:
    old, new = below.value, above.value
    if not isinstance(old, dict) or not isinstance(new, dict):
        return above
    both = {key: _merge(old[key], new[key]) for key in old.keys() & new.keys()}
    return Written(above.place, old | new | both)


def _spelt_out(file: Written) -> Written:
    """Write `base: MODEL` and sources that are paths alone as the mappings they are short for."""
    values = dict(file.value)
    if "base" in values:
        values["base"] = _mapping("model", values["base"])
    if "sources" in values:
        place, value = values["sources"]
        listed = [values["sources"]] if isinstance(value, str) else value
        if isinstance(listed, list):
            values["sources"] = Written(place, [_mapping("path", item) for item in listed])
    return Written(file.place, values)


def _mapping(key: str, written: Written) -> Written:
    short = isinstance(written.value, str)
    return Written(written.place, {key: written}) if short else written


def _absolute(written: Written, keys: tuple[str, ...], uri: str) -> Written:
    """Make the values under `keys`, which are relative to their file, absolute."""
    place, value = written
    if not keys and isinstance(value, str):
        value = _located(value, uri)
    elif keys[:1] == ("*",) and isinstance(value, list):
        value = [_absolute(item, keys[1:], uri) for item in value]
    elif keys and isinstance(value, dict) and keys[0] in value:
        value = value | {keys[0]: _absolute(value[keys[0]], keys[1:], uri)}
    return Written(place, value)


def _located(value: str, uri: str) -> str:
    if value.startswith(("hub:", "package:")):
        return value
    sqlite = re.match(r"sqlite:/{2,3}(?![/$])(.*)", value)
    if sqlite and "://" not in uri:
        return f"sqlite:///{quote(uri.rpartition('/')[0])}/{sqlite[1]}"
    return locate(value, uri)
