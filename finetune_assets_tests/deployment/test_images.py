"""The Dockerfiles are clean, and everything that they copy and start exists."""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_assets_tests.deployment.files import (
    DOCKER,
    DOCKERFILES,
    ROOT,
    argv_of_image,
    built,
    instructions,
    read,
    stages,
    values,
)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile_passes_hadolint(dockerfile: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / dockerfile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


def test_builds_name_files_and_stages_that_exist() -> None:
    for build in built():
        assert (DOCKER / build["context"]).resolve() == ROOT
        assert build["dockerfile"] in DOCKERFILES
        assert build["target"] in stages(build["dockerfile"])


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_copied_files_exist_and_reach_the_build(dockerfile: str) -> None:
    reaching = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for copy in values(dockerfile, "COPY"):
        *sources, _ = [part for part in shlex.split(copy) if not part.startswith("--")]
        if "--from=" in copy:
            stage = copy.split("--from=")[1].split()[0]
            assert stage in stages(dockerfile) or ":" in stage
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source in reaching


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_images_run_as_nobody_special_and_hold_no_secret(dockerfile: str) -> None:
    names = [name for name, _ in instructions(dockerfile)]
    assert "USER" in names[len(names) - names[::-1].index("FROM") :], "the last stage is root's"
    assert set(values(dockerfile, "USER")) == {"1000:1000"}
    named = " ".join(values(dockerfile, "ENV") + values(dockerfile, "ARG"))
    assert not re.search("PASSWORD|SECRET|TOKEN", named)


def test_constraints_leave_the_build_of_torch_to_each_image() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if re.match(r"torch\b", line)]
    assert len(pins) == 1
    assert re.fullmatch(r"torch==[\d.]+", pins[0]), "a local version shuts out the CUDA build"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_code_server_serves_the_definitions(dockerfile: str) -> None:
    from dagster import Definitions

    server, health = argv_of_image(dockerfile)[-2:]
    options = dict(zip(server[3::2], server[4::2], strict=True))
    module = importlib.import_module(options["--module-name"])
    assert isinstance(getattr(module, options["--attribute"]), Definitions)
    workspace = read("docker/workspace.yaml")["load_from"][0]["grpc_server"]
    assert options["--port"] == str(workspace["port"]) == health[-1]
    assert options["--location-name"] == workspace["location_name"]


def test_the_worker_is_installed() -> None:
    assert importlib.util.find_spec("finetune_assets.launch.worker")
