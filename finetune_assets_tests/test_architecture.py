"""The picture of the rooms in docs/architecture.md is that of the code and of its contracts."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "finetune_assets"
SEEN_BY_ALL = {"settings", "errors"}
"""Rooms that every other may import; the picture leaves them out."""

Arrows = set[tuple[str, str]]


def picture() -> Arrows:
    """Return the arrows `importer --> imported` of the diagram under the heading "The rooms"."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.partition("## The rooms")[2]
    diagram = re.search(r"```mermaid\n(.*?)```", section, re.DOTALL)
    assert diagram is not None
    arrows: Arrows = set()
    for line in re.sub(r"\[\".*?\"\]", "", diagram[1]).splitlines():
        steps = [[name.strip() for name in part.split("&")] for part in line.split("-->")]
        for above, below in pairwise(steps):
            arrows |= {(a, b) for a in above for b in below}
    return arrows


def contract(name: str) -> dict[str, list[str]]:
    """Return a contract of pyproject.toml by its id."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    return next(each for each in contracts if each["id"] == name)


def room(module: str) -> str:
    """Return the room of a module: the folder or file below the package, in a wing below that."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] in ("data", "models") and parts[1:] else parts[0]


@pytest.fixture(scope="module")
def imports() -> Arrows:
    """Every import of one room from another, as measured, without those that all may import."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    found: Arrows = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            if importer != PACKAGE and imported != PACKAGE:
                found.add((room(importer), room(imported)))
    return {(a, b) for a, b in found if a != b and not {a, b} & SEEN_BY_ALL}


def reachable(arrows: Arrows, start: str) -> set[str]:
    """Return all rooms that arrows lead to from one."""
    there: set[str] = set()
    waiting = [start]
    while waiting:
        for above, below in arrows:
            if above == waiting[-1] and below not in there:
                there.add(below)
                waiting.insert(0, below)
        waiting.pop()
    return there


def test_the_picture_is_that_of_the_imports(imports: Arrows) -> None:
    """An arrow is an import that no path of other arrows leads along; every such import is one."""
    direct = {(a, b) for a, b in imports if b not in reachable(imports - {(a, b)}, a)}
    assert picture() == direct


def test_every_room_is_in_the_picture(imports: Arrows) -> None:
    drawn = {name for arrow in picture() for name in arrow}
    assert drawn == {name for arrow in imports for name in arrow}


def test_the_layers_of_the_contracts_are_the_rooms_of_the_picture() -> None:
    rooms = {name for arrow in picture() for name in arrow}
    layers = {n.strip() for line in contract("rooms")["layers"] for n in line.split(":")}
    wings = {f"{wing}.{name}" for wing in ("data", "models") for name in contract(wing)["layers"]}
    assert rooms == (layers - SEEN_BY_ALL - {"data", "models"}) | wings


def test_no_arrow_points_upwards() -> None:
    order = [n.strip() for line in contract("rooms")["layers"] for n in line.split(":")]
    for wing in ("data", "models"):
        at = order.index(wing)
        order[at : at + 1] = [f"{wing}.{name}" for name in contract(wing)["layers"]]
    for above, below in picture():
        assert order.index(above) < order.index(below), (above, below)
