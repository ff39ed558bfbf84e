"""A bucket of the S3 server with rows of text."""

import gzip
import json

from finetune_assets_tests.stores.s3 import S3


class Bucket:
    """A bucket as others see it who write to it: nothing is remembered on the way."""

    def __init__(self, server: S3, name: str) -> None:
        import s3fs

        self.uri = server.make_bucket(name)
        self._files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    def put(self, path: str, content: str) -> None:
        body = content.encode()
        if path.endswith(".gz"):
            body = gzip.compress(body, mtime=0)
        self._files.pipe_file(f"{self.uri}/{path}", body)

    def remove(self, path: str) -> None:
        self._files.rm_file(f"{self.uri}/{path}")

    def contents(self, folder: str = "") -> dict[str, bytes]:
        """Return the objects by their path, which begins with the bucket."""
        return {
            path: self._files.cat_file(path)  # pyright: ignore
            for path in self._files.find(f"{self.uri}/{folder}")
        }

    def restore(self, objects: dict[str, bytes]) -> None:
        """Make these objects, of `contents`, the only ones."""
        now = self.contents()
        for path in now.keys() - objects.keys():
            self._files.rm_file(path)
        for path, content in objects.items():
            if now.get(path) != content:
                self._files.pipe_file(path, content)


def rows(word: str, answer: str = "the answer is {}") -> str:
    return "".join(
        json.dumps({"prompt": f"what is {word} {i}?", "completion": answer.format(i % 7)}) + "\n"
        for i in range(20)
    )


def forget_connections() -> None:
    """fsspec keeps one file system for equal arguments, whatever the environment says."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
