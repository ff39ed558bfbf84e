"""Workers report live, fail readably, and leave nothing running."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

from finetune_assets.errors import UserError
from finetune_assets.launch.process_group import ProcessGroupClient, WorkerFailed

HEADER = "from dagster_pipes import open_dagster_pipes\nimport os, sys, time, subprocess\n"


def run(script: str, tmp_path: Path) -> dg.ExecuteInProcessResult:
    path = tmp_path / "worker.py"
    path.write_text(HEADER + textwrap.dedent(script))

    @dg.asset
    def worked(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        ProcessGroupClient(grace_seconds=5).run(
            context, [sys.executable, str(path)], extras={"number": 7}
        )
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize([worked], instance=instance)


def test_a_worker_gets_its_extras_and_ends_well(tmp_path: Path) -> None:
    script = """
    with open_dagster_pipes() as pipes:
        assert pipes.get_extra("number") == 7
        pipes.log.info("hello from the worker")
    """
    assert run(script, tmp_path).success


def test_a_user_s_error_arrives_whole(tmp_path: Path) -> None:
    script = """
    with open_dagster_pipes() as pipes:
        pipes.report_custom_message(
            {"error": {"where": "f.jsonl:3", "cause": "broken", "remedy": "mend"}}
        )
        sys.exit(1)
    """
    with pytest.raises(UserError, match=r"f.jsonl:3: broken(.|\n)*remedy: mend"):
        run(script, tmp_path)


def test_a_crash_shows_the_last_lines_of_stderr(tmp_path: Path) -> None:
    script = """
    sys.stderr.write("Loading weights:  50%|#####     | 1/2\\r" * 30)
    with open_dagster_pipes():
        raise RuntimeError("the cause")
    """
    pattern = r"code 1(.|\n)*RuntimeError: the cause(.|\n)*remedy"
    with pytest.raises(WorkerFailed, match=pattern) as failed:
        run(script, tmp_path)
    assert "Loading weights" not in str(failed.value), "progress takes the place of what was said"


def test_a_killed_worker_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match=r"killed(.|\n)*memory(.|\n)*last checkpoint"):
        run("os.kill(os.getpid(), 9)", tmp_path)


def test_a_worker_whose_run_is_gone_before_it_begins_ends_at_once() -> None:
    command = [sys.executable, "-m", "finetune_assets.launch.worker", "adapters"]
    environment = {**os.environ, "FINETUNE_PARENT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the run worker is gone" in done.stderr


def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"""
    with open_dagster_pipes():
        child = subprocess.Popen(["sleep", "600"])
        open({str(pid_file)!r}, "w").write(str(child.pid))
    """
    assert run(script, tmp_path).success
    assert not _alive(int(pid_file.read_text()))


def test_cancel_ends_the_group_and_the_run_is_canceled(tmp_path: Path) -> None:
    """Also where the worker and its children are deaf to TERM."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        HEADER
        + textwrap.dedent(
            f"""
            import signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open_dagster_pipes():
                child = subprocess.Popen(["sleep", "600"])
                open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}\\n")
                time.sleep(600)
            """
        )
    )
    home = tmp_path / "home"
    home.mkdir()
    orchestrator = tmp_path / "orchestrator.py"
    orchestrator.write_text(
        textwrap.dedent(
            f"""
            import signal, sys
            import dagster as dg
            from finetune_assets.launch.process_group import ProcessGroupClient
            signal.signal(signal.SIGTERM, signal.default_int_handler)

            @dg.asset
            def worked(context: dg.AssetExecutionContext) -> None:
                ProcessGroupClient(grace_seconds=1).run(
                    context, [sys.executable, {str(worker)!r}], extras={{}}
                )

            with dg.DagsterInstance.get() as instance:
                dg.materialize([worked], instance=instance, raise_on_error=False)
            """
        )
    )
    environment = {**os.environ, "DAGSTER_HOME": str(home)}
    process = subprocess.Popen([sys.executable, str(orchestrator)], env=environment)
    pids = tmp_path / "pids"
    while not pids.exists() or not pids.read_text().endswith("\n"):
        assert process.poll() is None
        time.sleep(0.05)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        # What the UI's and the command line's "cancel" say before they send the signal.
        instance.report_run_canceling(instance.get_runs()[0])
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        assert not any(_alive(int(pid)) for pid in pids.read_text().split())
        assert [r.status for r in instance.get_runs()] == [dg.DagsterRunStatus.CANCELED]


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
