"""Fingerprints: the identity of an artifact is the identity of what it is made from."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

LENGTH = 24
"""Hex digits kept of a SHA-256: 96 bits, short enough to read in a path."""


def digest(value: object) -> str:
    """Return the hash of any JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def file_digest(path: Path) -> str:
    """Return the full SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(
    asset: str,
    code_version: str,
    config: Mapping[str, object],
    upstream: Mapping[str, str],
    libraries: Mapping[str, str],
) -> str:
    """Return the identity of the artifact that a task makes from these inputs."""
    inputs = {"config": config, "upstream": upstream, "libraries": libraries}
    return digest({"asset": asset, "code_version": code_version, **inputs})


def library_versions(*names: str) -> dict[str, str]:
    """Return the installed versions of the libraries whose releases change a task's result."""
    return {name: version(name) for name in names}
