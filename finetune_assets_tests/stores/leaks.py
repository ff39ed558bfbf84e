"""Looking for texts in files."""

from pathlib import Path
from urllib.parse import quote

from finetune_assets_tests.stores.postgres import PASSWORD

SECRETS = [text.encode() for text in (PASSWORD, quote(PASSWORD, safe=""))]
"""The password of PostgreSQL, as it is and as URIs hold it."""


def written(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holding(files: dict[str, bytes], texts: list[bytes]) -> list[str]:
    return [path for path, content in files.items() if any(text in content for text in texts)]
