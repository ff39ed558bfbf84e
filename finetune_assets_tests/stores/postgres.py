"""A real PostgreSQL server in a temporary folder."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

USER, PASSWORD = "finetune", "pass/w@rd:1"
ACCOUNTS = ("postgres", "nobody")
"""Who runs the server where the tests run as root, which PostgreSQL refuses."""


@pytest.fixture(scope="session", name="postgres")
def postgres_server() -> Iterator[str]:
    """URI of a running PostgreSQL server, with user and password."""
    with running() as uri:
        yield uri


@contextmanager
def running() -> Iterator[str]:
    """Start a server on a free port of 127.0.0.1; stop it at the end."""
    programs = find_programs()
    with tempfile.TemporaryDirectory(prefix="finetune-postgres-") as name:
        folder = Path(name)
        account = _account(folder)
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        data, log = folder / "data", folder / "log"
        settings = f"-U {USER} --pwfile={password} -A scram-sha-256 -E UTF8 --locale=C --no-sync"
        _run(
            [programs / "initdb", "-D", data, *settings.split()],
            log,
            account,
        )
        port = free_port()
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [programs / "pg_ctl", "-D", data, "-w"]
        try:
            _run([*control, "-l", folder / "server", "-o", options, "start"], log, account)
            yield f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        finally:
            if (data / "postmaster.pid").exists():
                _run([*control, "-m", "immediate", "stop"], log, account)


def find_programs() -> Path:
    """Folder of initdb and pg_ctl: that on PATH, or Debian's newest."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    if not debian:
        pytest.fail("PostgreSQL is not installed: apt-get install postgresql", pytrace=False)
    return debian[-1].parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _account(folder: Path) -> dict[str, Any]:
    """Arguments of subprocess that leave root behind, the folder being handed over."""
    if os.getuid() != 0:
        return {}
    import pwd

    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    account = next(known[name] for name in ACCOUNTS if name in known)
    os.chown(folder, account.pw_uid, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _run(command: list[Any], log: Path, account: dict[str, Any]) -> None:
    """Run to the end; not through a pipe, which the server would inherit and keep open."""
    with log.open("a") as out:
        done = subprocess.run(
            command, stdout=out, stderr=out, cwd=log.parent, check=False, timeout=60, **account
        )
    if done.returncode != 0:
        logs = "".join(path.read_text() for path in (log, log.with_name("server")) if path.exists())
        pytest.fail(f"{command[0]} failed:\n{logs}", pytrace=False)
