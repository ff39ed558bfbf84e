"""`make dev`: Dagster (webserver and daemon) and the MLflow UI over the same stores."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from finetune_assets import settings

DAGSTER_PORT = 3000
MLFLOW_PORT = 5000
GRACE_SECONDS = 20.0


def main() -> None:
    """Run both until one ends or Ctrl-C; then end both."""
    home = settings.ensure_dagster_home()
    uri = settings.mlflow_uri()
    environment = {
        **os.environ,
        settings.DAGSTER_VARIABLE: str(home),
        settings.MLFLOW_VARIABLE: uri,
        settings.STORAGE_VARIABLE: settings.storage_uri(),
        settings.CATALOG_VARIABLE: settings.catalog_uri(),
        # The server's own job queue, which nothing here uses, holds 1.8 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    commands = [
        [
            *(sys.executable, "-m", "dagster", "dev", "-m", "finetune_assets.definitions"),
            *("--port", str(DAGSTER_PORT)),
        ],
        [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
            *("--port", str(MLFLOW_PORT), "--workers", "1"),
        ],
    ]
    if root := settings.mlflow_artifact_root():
        commands[1] += ["--default-artifact-root", root]
    processes = [subprocess.Popen(c, env=environment, start_new_session=True) for c in commands]
    print(f"Dagster http://localhost:{DAGSTER_PORT}  MLflow http://localhost:{MLFLOW_PORT}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while all(p.poll() is None for p in processes):
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("stopping")
    finally:
        _end(processes)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
