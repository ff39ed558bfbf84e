"""Content-addressed artifacts on any fsspec URI."""
