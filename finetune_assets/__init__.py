"""Fine-tuning of open language models as a Dagster asset graph."""
