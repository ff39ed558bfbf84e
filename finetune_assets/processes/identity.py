"""Which process is at work on something, so that a later one can tell whether it is gone."""

import os
import socket
import sys
from pathlib import Path


def this_process() -> str:
    """`PID-BEGAN`: a number alone may soon be another process's, after a container's restart at
    once."""
    return f"{os.getpid()}-{_began(os.getpid())}"


def is_gone(process: str) -> bool:
    """Whether a process of this machine, as named by `this_process`, has ended."""
    pid, _, began = process.partition("-")
    return not began or _began(int(pid)) != began


def here() -> str:
    """`HOST:PID-BEGAN` of this process, for what other machines see too."""
    return f"{socket.gethostname()}:{this_process()}"


def is_gone_from_here(process: str) -> bool:
    """Whether a process, as named by `here`, was one of this machine and has ended."""
    host, _, process = process.partition(":")
    return host == socket.gethostname() and is_gone(process)


def _began(pid: int) -> str:
    """A mark of when a process began; empty if there is none, or only its exit code is kept."""
    if sys.platform != "linux":
        import psutil

        return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
