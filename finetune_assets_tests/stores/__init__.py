"""Real servers for tests, each in a temporary folder and gone at the end."""

from finetune_assets_tests.stores.postgres import postgres_server
from finetune_assets_tests.stores.s3 import s3_server

__all__ = ["postgres_server", "s3_server"]
