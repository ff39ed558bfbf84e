"""Content-addressed artefacts on any fsspec URI."""
