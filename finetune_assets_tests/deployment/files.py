"""What the deployment files say, read once."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ("docker/Dockerfile", "docker/Dockerfile.cuda")


@cache
def read(path: str) -> Any:
    return YAML(typ="safe").load((ROOT / path).read_text())


def services() -> dict[str, dict[str, Any]]:
    return read("docker/compose.yaml")["services"]


@cache
def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, value) of each line of a Dockerfile, continuation lines joined."""
    parser = DockerfileParser(fileobj=io.StringIO((ROOT / dockerfile).read_text()))
    return [(i["instruction"], i["value"]) for i in parser.structure]


def values(dockerfile: str, instruction: str) -> list[str]:
    return [value for name, value in instructions(dockerfile) if name == instruction]


def stages(dockerfile: str) -> list[str]:
    return [value.split()[-1] for value in values(dockerfile, "FROM")]


def argv_of_image(dockerfile: str) -> list[list[str]]:
    """The commands that the image itself starts: CMD and the health check."""
    commands = values(dockerfile, "CMD") + values(dockerfile, "HEALTHCHECK")
    return [json.loads(command[command.index("[") :]) for command in commands]


def built() -> list[dict[str, Any]]:
    """Builds of compose.yaml, and the same with compose.gpu.yaml laid over."""
    plain = {name: s["build"] for name, s in services().items() if "build" in s}
    over = {n: s["build"] for n, s in read("docker/compose.gpu.yaml")["services"].items()}
    return [*plain.values(), *({**plain[name], **build} for name, build in over.items())]


def commands() -> list[list[str]]:
    """Every command that runs in an image of this project."""
    found = [argv for dockerfile in DOCKERFILES for argv in argv_of_image(dockerfile)]
    for service in services().values():
        if "build" in service:
            found += [service["command"]] if "command" in service else []
            test = service.get("healthcheck", {}).get("test")
            found += [test[1:]] if test else []
    return found


def texts(node: Any) -> list[str]:
    """Every string in a YAML tree."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [str(node)]
