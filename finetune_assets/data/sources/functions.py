"""Rows that a Python function yields."""

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.values import Row, Rows, plain
from finetune_assets.errors import UserError
from finetune_assets.storage.fingerprint import digest, file_digest


def function_rows(source: Source, where: str, folder: Path | None) -> Rows:
    """Yield the dictionaries that a function yields; UserError where it yields anything else."""
    name, arguments = source.function or "", source.arguments
    with _importable(folder):
        file = _module_file(name, where)
        try:
            rows = _function(name, arguments, file, where)(**arguments)
            if isinstance(rows, dict | str) or not isinstance(rows, Iterable):
                raise _no_rows(name, f"returns {type(rows).__name__}", where)
            for number, row in enumerate(rows, 1):
                if not isinstance(row, dict):
                    raise _no_rows(name, f"yields {type(row).__name__} as row {number}", where)
                yield row
        except UserError:
            raise
        except Exception as error:
            raise _raised(name, error, file, where) from error


def function_version(source: Source, where: str, folder: Path | None) -> str:
    """Return the hash of the function's module and of its arguments."""
    arguments = orjson.dumps(source.arguments, default=plain, option=orjson.OPT_SORT_KEYS)
    with _importable(folder):
        module = _module_file(source.function or "", where)
        return digest([file_digest(module), arguments.decode()])


@contextlib.contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Import from the current and the catalog's folder, after all others, to hide no library."""
    given = [str(path.resolve()) for path in (Path(), folder) if path is not None]
    added = [path for path in dict.fromkeys(given) if path not in sys.path]
    importlib.invalidate_caches()
    sys.path.extend(added)
    try:
        yield
    finally:
        for path in added:
            sys.path.remove(path)


def _module_file(name: str, where: str) -> Path:
    module = name.split(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    except Exception as error:
        raise _raised(name, error, None, where) from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        remedy = "put its file beside the catalog file or in the current directory, or install it"
        raise UserError(where, f"function {name}: there is no module {module}", remedy)
    return Path(spec.origin)


def _function(name: str, arguments: Row, file: Path, where: str) -> Callable[..., object]:
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute, None)
    if not callable(function):
        remedy = f"mend `function: {name}`, or the file"
        raise UserError(where, f"{file} has no function {attribute}", remedy)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        cause = f"`arguments` do not fit function {name}: {error}"
        raise UserError(where, cause, "mend `arguments`") from error
    return function


def _no_rows(name: str, what: str, where: str) -> UserError:
    return UserError(where, f"function {name} {what}", "let it yield dictionaries, one a row")


def _raised(name: str, error: Exception, file: Path | None, where: str) -> UserError:
    """Return an error that says where it was raised and, if elsewhere, where it was called."""
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    places = [f"raised at {path}:{line}" for path, line in frames[-1:]]
    inner = [frame for frame in frames if frame[0] == str(file)][-1:]
    if inner != frames[-1:]:
        places += [f"called at {path}:{line}" for path, line in inner]
    cause = f"function {name}: {type(error).__name__}: {error}"
    return UserError(where, ", ".join([cause, *places]), "mend the function")
