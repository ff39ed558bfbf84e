"""Where things are: the environment variables of the platform, each with its default.

Every other module asks here, so that the webserver, the daemon, a run worker, a worker process
and the command line agree on the stores they read and write.
"""

import os
from pathlib import Path

CATALOG_VARIABLE = "FINETUNE_CATALOG"
"""Folder of dataset YAML files, a path or any fsspec URI. Default: `catalog`."""
STORAGE_VARIABLE = "FINETUNE_STORAGE"
"""Root of the artifact store, a path or any fsspec URI. Default: `storage`."""
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow tracking and registry store. Default: SQLite beside the artifacts."""
DAGSTER_VARIABLE = "DAGSTER_HOME"
"""Dagster's instance folder. Default: `.dagster_home`."""
MLFLOW_UI_VARIABLE = "FINETUNE_MLFLOW_UI"
"""Address of MLflow as a browser sees it. Default: the tracking server, or port 5000 here."""
DEVICE_VARIABLE = "FINETUNE_DEVICE"
"""GPU that training will have, e.g. `A100 80GB`, where that is not the machine that plans and
checks. Default: this machine."""


def catalog_uri() -> str:
    """Return the catalog folder: a path (made absolute) or a URI."""
    return _absolute(os.environ.get(CATALOG_VARIABLE) or "catalog")


def storage_uri() -> str:
    """Return the artifact root: a path (made absolute) or a URI."""
    return _absolute(os.environ.get(STORAGE_VARIABLE) or "storage")


def local_state_folder() -> Path:
    """Return a folder on this machine's disk for what must be local, such as SQLite and scratch."""
    root = storage_uri()
    return Path("storage").absolute() if "://" in root else Path(root)


def mlflow_uri() -> str:
    """Return the MLflow tracking URI: by default SQLite, as the file store takes no registry."""
    configured = os.environ.get(MLFLOW_VARIABLE)
    return configured or f"sqlite:///{local_state_folder() / 'mlflow.db'}"


def mlflow_artifact_root() -> str | None:
    """Return where MLflow puts artifacts of a local SQLite store; None leaves it to a server."""
    if not mlflow_uri().startswith("sqlite:"):
        return None
    root = storage_uri()
    return f"{root}/mlflow" if "://" in root else (Path(root) / "mlflow").as_uri()


def dagster_home() -> Path:
    """Return Dagster's instance folder."""
    return Path(os.environ.get(DAGSTER_VARIABLE) or ".dagster_home").absolute()


def ensure_dagster_home() -> Path:
    """Create the instance folder with the platform's own `dagster.yaml`; keep one that is there."""
    home = dagster_home()
    home.mkdir(parents=True, exist_ok=True)
    target = home / "dagster.yaml"
    if not target.exists():
        template = Path(__file__).with_name("dagster.yaml").read_text()
        scratch = target.with_suffix(f".{os.getpid()}")
        scratch.write_text(template)
        scratch.replace(target)
    os.environ[DAGSTER_VARIABLE] = str(home)
    return home


def _absolute(location: str) -> str:
    return location.rstrip("/") if "://" in location else str(Path(location).absolute())


def device() -> str | None:
    """Return the name of the GPU that training will have; None for this machine."""
    return os.environ.get(DEVICE_VARIABLE) or None


def mlflow_ui() -> str:
    """Return the address that links to MLflow begin with."""
    uri = mlflow_uri()
    default = uri if uri.startswith("http") else "http://localhost:5000"
    return (os.environ.get(MLFLOW_UI_VARIABLE) or default).rstrip("/")
