"""Every dataset file that the documentation shows is a valid one."""

import re
from pathlib import Path

import pytest

from finetune_assets.catalog.load import parse

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_shown_dataset_files_are_valid(block: str) -> None:
    assert parse(block, "shown.yaml").sources


def test_there_are_some() -> None:
    assert len(BLOCKS) > 4
