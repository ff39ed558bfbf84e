"""Judging models: metrics, generation, reports."""
