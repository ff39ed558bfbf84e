"""The asset check that stops a training which does not fit the machine."""

import dagster as dg
import pytest

from finetune_assets.catalog.cleaning import Limit
from finetune_assets.defs.model_checks import fits_the_machine
from finetune_assets_tests.models.planning.plans import planned
from finetune_assets_tests.models.planning.published import (
    LLAMA_7B,
    recipe,
)


@pytest.mark.parametrize(
    ("limit", "passed", "severity"),
    [
        (Limit(limit=1.0, severity="error"), False, dg.AssetCheckSeverity.ERROR),
        (Limit(limit=1.0, severity="warn"), False, dg.AssetCheckSeverity.WARN),
        (Limit(limit=9.0, severity="error"), True, dg.AssetCheckSeverity.ERROR),
    ],
)
def test_the_check_stops_what_does_not_fit(
    limit: Limit, passed: bool, severity: dg.AssetCheckSeverity
) -> None:
    made = planned(LLAMA_7B, recipe(quantization="none"), "T4")
    result = fits_the_machine(made, limit)
    assert result.passed is passed
    assert result.severity is severity
    assert "GB of the 15.68 GB of T4 16GB" in (result.description or "")
    parts = result.metadata["estimate"].value.records  # type: ignore[union-attr]
    assert [row.data["memory"] for row in parts][:3] == ["weights", "adapter", "gradients"]
    assert result.metadata["what_would_fit"].value  # type: ignore[union-attr]


def test_an_unknown_architecture_does_not_stop_a_run() -> None:
    result = fits_the_machine(None, Limit(limit=1.0, severity="error"))
    assert result.passed
    assert result.severity is dg.AssetCheckSeverity.WARN
