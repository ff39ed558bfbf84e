"""Plans of published models on GPUs that are not here."""

from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.need import Counts, target
from finetune_assets.models.planning.preflight import Plan, preflight

WHOLE: dict[str, Any] = {"method": "full", "quantization": "none"}
COUNTS = Counts(
    rows=10_000,
    contexts=2_500,
    tokens=2_400_000,
    supervised=800_000,
    longest=1024,
    validation_tokens=100_000,
    exact=True,
)


def planned(shape: Any, training: Training, device: str, devices: int | None = None) -> Plan:
    return preflight(shape, training, target(training, "--gpu", device, devices), COUNTS)
