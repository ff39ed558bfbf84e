"""Every dataset file that the documentation shows is a valid one, and it shows every key."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.explain import valid_keys
from finetune_assets.catalog.load import parse
from finetune_assets.catalog.training import Training
from finetune_assets.models.training.passthrough import require_valid

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)


def name_of(block: str) -> str:
    """The file that a block's first line names, e.g. `# catalog/support.yaml`."""
    named = re.match(r"# (\S+\.yaml)\n", block)
    return named[1] if named else "catalog/shown.yaml"


BLOCKS = [
    pytest.param(page, block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_shown_dataset_files_are_valid(page: Path, block: str, tmp_path: Path) -> None:
    """Files that a page names are there for those that extend them; parts get what they lack."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for each in blocks(page):
        if not name_of(each).startswith("examples"):
            (tmp_path / name_of(each)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name_of(each)).write_text(each)
    shown = YAML(typ="safe").load(block)
    whole = block
    if "extends" not in shown:
        whole += "".join(f"\n{key}: x\n" for key in ("sources", "base") if key not in shown)
    config = parse(whole, str(tmp_path / name_of(block)))
    assert config.sources
    require_valid(config.training.arguments, page.name)


def test_there_are_some() -> None:
    assert len(BLOCKS) > 20


def test_every_key_of_training_is_shown() -> None:
    shown = {
        path
        for block in blocks(ROOT / "docs" / "training.md")
        for path in paths(YAML(typ="safe").load(block).get("training", {}), ())
    }
    assert set(declared(())) <= shown


def paths(values: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def declared(above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every key below `training:`, at any depth."""
    for key in valid_keys(("training", *above)):
        yield (*above, key)
        yield from declared((*above, key))


def test_declared_keys_are_those_of_the_section() -> None:
    assert [path[0] for path in declared(()) if len(path) == 1] == list(Training.model_fields)
    assert "training" in Dataset.model_fields
