"""MLflow: tracking runs, model versions, aliases and the promotion decision."""
