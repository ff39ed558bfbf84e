"""The shape of the code: small folders and functions, one name for one file, and no hidden classes.

Which rooms may import which is held by import-linter.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "finetune_assets", ROOT / "finetune_assets_tests"
MOST_MODULES = 15
"""In a folder."""
MOST_LINES = 60
"""Of a function, from `def` to its end."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(folder: Path) -> list[Path]:
    """Return the Python files of a folder and of those below it."""
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def functions(folder: Path) -> Iterator[tuple[str, Function]]:
    """Yield every function, also those within others, and where it is."""
    for path in modules(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_no_class_is_made_inside_a_function() -> None:
    hidden = [
        f"{place}: {inner.name}"
        for place, function in functions(PACKAGE)
        for inner in ast.walk(function)
        if isinstance(inner, ast.ClassDef)
    ]
    assert hidden == []


def test_functions_fit_a_screen() -> None:
    lengths = {
        place: (function.end_lineno or function.lineno) - function.lineno + 1
        for place, function in functions(PACKAGE)
    }
    assert {place: lines for place, lines in lengths.items() if lines > MOST_LINES} == {}


@pytest.mark.parametrize("folder", [PACKAGE, TESTS], ids=lambda folder: folder.name)
def test_folders_are_small(folder: Path) -> None:
    counts = Counter(str(path.parent.relative_to(ROOT)) for path in modules(folder))
    assert {place: count for place, count in counts.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("wing", ["data", "models"])
def test_no_file_name_occurs_twice_in_a_wing(wing: str) -> None:
    counts = Counter(path.name for path in modules(PACKAGE / wing) if path.stem != "__init__")
    assert {name: count for name, count in counts.items() if count > 1} == {}


def test_no_test_module_imports_another() -> None:
    """A shared helper would run the other's tests' setup, and move with them."""
    crossing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules(TESTS)
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported(node)
        if name.startswith("test_")
    ]
    assert crossing == []


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the last part of each name that a statement imports, and of the module it is from."""
    if isinstance(node, ast.Import):
        yield from (alias.name.rpartition(".")[2] for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        yield (node.module or "").rpartition(".")[2]
        yield from (alias.name for alias in node.names)
