"""A process is told from another that has its number."""

import os
import signal
import subprocess
import sys

import pytest

from finetune_assets.processes import identity


def test_a_process_is_gone_when_it_has_ended_also_if_nobody_has_asked_how() -> None:
    script = "from finetune_assets.processes import identity; print(identity.here(), flush=True);"
    child = subprocess.Popen(
        [sys.executable, "-c", script + "input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    assert not identity.is_gone_from_here(name)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity.is_gone_from_here(name), "what is left is its exit code"
    child.communicate()
    assert identity.is_gone_from_here(name)


def test_the_same_number_is_not_the_same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not identity.is_gone(identity.this_process())
    assert identity.is_gone(f"{os.getpid()}-1")
    name = identity.here()
    monkeypatch.setattr("socket.gethostname", lambda: "another-machine")
    assert not identity.is_gone_from_here(name)
    assert not identity.is_gone_from_here("")
