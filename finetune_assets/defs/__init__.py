"""The Dagster layer: thin shells over the rooms."""
