"""Failures of libraries as errors that people can mend."""

import contextlib
import re
from collections.abc import Iterator
from urllib.parse import unquote

from finetune_assets.errors import UserError


@contextlib.contextmanager
def explain_library_errors(where: str, remedy: str, uri: str = "") -> Iterator[None]:
    """Turn failures of a library, whose own errors may hold the URI's secrets, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).split("\n\nQuery was:")[0].strip() or type(error).__name__
        raise UserError(where, _redact(text, uri), remedy) from None


@contextlib.contextmanager
def explain_store_errors(uri: str) -> Iterator[None]:
    """Turn failures of a remote store into a UserError; leave those of a local disk as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or "://" not in uri:
            raise
        if isinstance(error, ImportError | ValueError):  # fsspec has nothing for the URI
            remedy = "mend the URI, or install what reads it wherever the graph runs"
            raise UserError(uri, str(error), remedy) from error
        cause = "access is denied" if isinstance(error, PermissionError) else "it cannot be read"
        raise UserError(
            uri,
            f"{cause}: {error}",
            "check the URI and the store's address and credentials wherever the graph runs; "
            "for S3 the variables AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error


def _redact(text: str, uri: str) -> str:
    userinfo = uri.partition("://")[2].rpartition("@")[0]
    secrets = [userinfo.partition(":")[2]]
    for name, value in re.findall(r"[?&]([^=&]+)=([^&]*)", uri):
        if re.search("pass|token|key|secret", name, re.IGNORECASE):
            secrets.append(value)
    text = re.sub(r"//[^\s/@]*@", "//***@", text)
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
