"""Which process is at work on something, and whether it is gone."""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path


def this_process() -> str:
    """Return `PID-BEGAN` of this process.

    A number alone may soon be another process's, after a container's restart at once.
    """
    return f"{os.getpid()}-{_began(os.getpid())}"


def is_gone(process: str) -> bool:
    """Return whether a process of this machine, as named by `this_process`, has ended."""
    pid, _, began = process.partition("-")
    return not began or _began(int(pid)) != began


def here() -> str:
    """Return `HOST:PID-BEGAN` of this process, for what other machines see too."""
    return f"{socket.gethostname()}:{this_process()}"


def is_gone_from_here(process: str) -> bool:
    """Return whether a process, as named by `here`, was one of this machine and has ended."""
    host, _, process = process.partition(":")
    return host == socket.gethostname() and is_gone(process)


def end_with_parent(sent: signal.Signals, parent: int | None = None, name: str = "parent") -> None:
    """Ask Linux to send this process a signal when its parent dies, so that none is orphaned.

    Where `parent`, a process's number, was gone before that, this process exits and says `name`.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, sent)
    if parent is not None and os.getppid() != parent:
        sys.exit(f"the {name} is gone")


def _began(pid: int) -> str:
    """Return when a process began; empty if there is none, or only its exit code is kept."""
    if sys.platform != "linux":
        import psutil

        return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
