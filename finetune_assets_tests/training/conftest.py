"""A training set that the tests of training share."""

from pathlib import Path

import pytest

from finetune_assets.catalog.training import Training
from finetune_assets.tokenization.training_set import build
from finetune_assets_tests.tokenization.test_training_set import write


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """20 different contexts of two rows each, with 4 for validation."""
    folder = tmp_path_factory.mktemp("data")
    answers = [f"the answer is {i % 7} {i:02}" for i in range(40)]
    splits = {
        "train": write(folder / "train.parquet", answers),
        "validation": write(folder / "validation.parquet", answers[:8]),
    }
    out = folder / "set"
    out.mkdir()
    build(
        tiny_base,
        splits,
        out,
        where="d.yaml",
        training=Training(max_length=64, long_rows="error"),
        progress=lambda _: None,
    )
    return out
