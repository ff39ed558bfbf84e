"""The settings of training that are proposed."""

import pytest

from finetune_assets.commands.proposal.training import max_length, recipe


def test_length_holds_nearly_all_rows_within_the_models_limit() -> None:
    assert max_length([100] * 99 + [5000], None) == 256
    assert max_length([100] * 98 + [5000] * 2, None) == 8192
    assert max_length([100] * 98 + [5000] * 2, 4096) == 4096
    assert max_length([20_000], None) == 8192
    assert max_length([100], 128) == 128


@pytest.mark.parametrize(
    ("train_rows", "contexts", "expected"),
    [(60, 10, (5, 1)), (60, 60, (5, 4)), (3000, 600, (3, 8)), (10**6, 10**5, (1, 32))],
)
def test_recipe(train_rows: int, contexts: int, expected: tuple[int, int]) -> None:
    assert recipe(train_rows, contexts) == expected
