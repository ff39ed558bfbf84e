"""Spans of time show the two units that matter."""

import pytest

from finetune_assets.models.planning.duration import duration_text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (260, "4 min 20 s"),
        (3 * 3600 + 125, "3 h 2 min"),
        (50 * 3600, "50 h 0 min"),
    ],
)
def test_the_two_units_that_matter_are_shown(seconds: float, expected: str) -> None:
    assert duration_text(seconds) == expected
