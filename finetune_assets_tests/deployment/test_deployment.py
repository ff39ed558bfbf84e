"""Everything that the compose files name exists; no Docker engine is needed to know."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from finetune_assets import settings
from finetune_assets.catalog import load as catalog
from finetune_assets_tests.deployment.files import (
    DOCKER,
    DOCKERFILES,
    ROOT,
    commands,
    read,
    services,
    texts,
    values,
)

IN_CONTAINER = PurePosixPath("/opt/finetune")
SERVER_COMMANDS = (
    ["dagster-webserver"],
    ["dagster-daemon", "run"],
    ["dagster-daemon", "liveness-check"],
    ["dagster", "code-server", "start"],
    ["dagster", "api", "grpc-health-check"],
    ["mlflow", "server"],
)


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("compose-spec", "docker/compose.yaml"),
        ("compose-spec", "docker/compose.gpu.yaml"),
        ("github-workflows", ".github/workflows/ci.yml"),
    ],
)
def test_file_follows_its_published_schema(schema: str, file: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, str(ROOT / file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mounts_exist_and_are_used() -> None:
    volumes = read("docker/compose.yaml")["volumes"]
    used = set()
    for service in services().values():
        for mount in service.get("volumes", []):
            source, target, *mode = mount.split(":")
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
                assert mode == ["ro"], f"{mount} can be written to"
            else:
                used.add(source)
            assert PurePosixPath(target).is_absolute()
    assert used == set(volumes)


def test_the_catalog_reads_alike_in_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths relative to a dataset file lead to mounted folders; bases are in the image."""
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(ROOT / "catalog"))
    folders = []
    for mount in services()["code-server"]["volumes"]:
        source, target, *_ = mount.split(":")
        if source.startswith("."):
            folders.append((DOCKER / source).resolve())
            assert PurePosixPath(target) == IN_CONTAINER / folders[-1].relative_to(ROOT).as_posix()
    for name in catalog.names():
        entry = catalog.load(name)
        located = [Path(entry.locate(source.path)) for source in entry.config.sources]
        assert all(any(p.is_relative_to(f) for f in folders) for p in located), f"{name}: {located}"
        kind, _, rest = entry.config.base.model.partition(":")
        if kind == "package":
            distribution = rest.split("/")[0].replace("_", "-")
            for dockerfile in DOCKERFILES:
                assert any(distribution in run for run in values(dockerfile, "RUN"))


def test_commands_name_programs_that_are_installed() -> None:
    scripts = {script.name for script in importlib.metadata.entry_points(group="console_scripts")}
    for argv in commands():
        if argv[0] == "python":
            assert argv[1] == "-c"
            compile(argv[2], "compose.yaml", "exec")
        else:
            assert argv[0] in scripts, argv[0]
            # Its options are checked below.
            assert any(argv[: len(command)] == command for command in SERVER_COMMANDS), argv


@pytest.mark.parametrize("command", SERVER_COMMANDS, ids=" ".join)
def test_commands_use_options_that_exist(command: list[str]) -> None:
    program = shutil.which(command[0], path=str(Path(sys.executable).parent))
    assert program
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [program, *command[1:], "--help"], capture_output=True, text=True, env=environment
    )
    named = [argv for argv in commands() if argv[: len(command)] == command]
    assert named
    for argv in named:
        for option in (part.split("=")[0] for part in argv[len(command) :] if part[:2] == "--"):
            assert re.search(rf"{option}\b", done.stdout), option


def test_services_wait_for_services_that_can_say_so() -> None:
    for service in services().values():
        for name, wait in service.get("depends_on", {}).items():
            other = services()[name]
            if wait["condition"] == "service_completed_successfully":
                assert other["restart"] == "no"
            elif "healthcheck" not in other:
                assert values(other["build"]["dockerfile"], "HEALTHCHECK"), name


def test_addresses_lead_to_services_and_their_ports() -> None:
    compose = read("docker/compose.yaml")
    bucket = compose["x-environment"]["S3_BUCKET"]
    workspace = read("docker/workspace.yaml")["load_from"][0]["grpc_server"]
    assert workspace["host"] in services()
    assert compose["x-environment"]["DAGSTER_DB_HOST"] in services()
    for text in texts(compose["services"]) + texts(compose["x-environment"]):
        for scheme, host in re.findall(r"([\w+]+)://(?:[^@/\s\"]*@)?([\w.-]+)", text):
            known = {bucket} if scheme == "s3" else {*services(), "127.0.0.1"}
            assert host in known, text
    published = {s["ports"][0].split(":")[-1] for s in services().values() if "ports" in s}
    for variable in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
        assert compose["x-environment"][variable].split(":")[-1] in published


def test_ports_open_to_this_machine_alone() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_interpolated_variables_are_in_the_example_and_carry_no_secret() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    used = dict(re.findall(r"\$\{(\w+)(:?[?-])", text))
    lines = (DOCKER / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(used) == set(example)
    secret = re.compile("PASSWORD|SECRET|TOKEN")
    assert [name for name, value in example.items() if value and secret.search(name)] == []
    assert {name for name, check in used.items() if check == ":-"} == {"HF_TOKEN"}
    literal = {k: v for s in services().values() for k, v in s.get("environment", {}).items()}
    assert all(str(v).startswith("${") for k, v in literal.items() if secret.search(k))
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "docker/.env" in ignored


def test_variables_are_ones_that_are_read() -> None:
    from mlflow import environment_variables as of_mlflow

    ours = {getattr(settings, name) for name in dir(settings) if name.endswith("_VARIABLE")}
    instance = set(re.findall(r"env: (\w+)", (DOCKER / "dagster.yaml").read_text()))
    common = set(read("docker/compose.yaml")["x-environment"])
    assert instance <= common
    assert ours & common >= {"FINETUNE_CATALOG", "FINETUNE_STORAGE", "MLFLOW_TRACKING_URI"}
    everywhere = common.union(*(s.get("environment", {}) for s in services().values()))
    for name in everywhere:
        if name.startswith(("FINETUNE_", "DAGSTER_")) and not name.endswith("_DB_PASSWORD"):
            assert name in ours | instance, name
        if name.startswith("MLFLOW_") and not name.endswith("_DB_PASSWORD"):
            assert name in ours or hasattr(of_mlflow, name), name
    for image in DOCKERFILES:
        assert f"DAGSTER_HOME={read('docker/compose.yaml')['x-environment']['DAGSTER_HOME']}" in (
            " ".join(values(image, "ENV"))
        )


def test_ci_calls_make_targets_that_exist() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert runs == ["make test", "make quickstart"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{run.split()[1]}:", makefile, re.M) for run in runs)
