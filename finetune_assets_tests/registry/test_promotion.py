"""The better model becomes champion; a worse one is a normal outcome."""

import pytest

from finetune_assets.registry.promotion import decide


@pytest.mark.parametrize(
    ("metric", "challenger", "champion", "margin", "outcome"),
    [
        ("exact_match", 0.1, None, 0.0, "promoted"),
        ("exact_match", 0.9, 0.8, 0.0, "promoted"),
        ("exact_match", 0.8, 0.8, 0.0, "retained"),
        ("exact_match", 0.82, 0.8, 0.05, "retained"),
        ("loss", 0.5, 0.6, 0.0, "promoted"),
        ("loss", 0.6, 0.5, 0.0, "retained"),
    ],
)
def test_decisions(
    metric: str, challenger: float, champion: float | None, margin: float, outcome: str
) -> None:
    decision = decide(metric, challenger, champion, margin)
    assert decision.outcome == outcome
    assert metric in decision.reason
