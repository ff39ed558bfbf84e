"""A training set that the tests of training share."""

from pathlib import Path

import pytest

from finetune_assets_tests.models.data import make


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """20 different contexts of two rows each, with 4 for validation."""
    answers = [f"the answer is {i % 7} {i:02}" for i in range(40)]
    return make(tiny_base, tmp_path_factory.mktemp("data"), answers, answers[:8])
