"""Rows divided so that no question is in two splits."""
