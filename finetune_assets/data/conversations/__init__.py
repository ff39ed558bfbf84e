"""Rows as canonical conversations, whatever their format."""
