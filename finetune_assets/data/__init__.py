"""The wing of rows: from what arrived to splits without leaks."""
