"""The base that a dataset names: one meaning for fingerprints, tokens, shapes and files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_assets.errors import UserError
from finetune_assets.models.bases.prepare import prepare
from finetune_assets.models.bases.reference import BaseReference
from finetune_assets.storage.fingerprint import digest

WAYS: list[Callable[[BaseReference], object]] = [
    BaseReference.identity,
    BaseReference.tokenizer,
    lambda base: prepare(base, Path("nowhere")),
]


def test_a_folder_is_told_apart_by_its_files_and_its_template(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder, template = tmp_path / "base", tmp_path / "template.jinja"
    shutil.copytree(tiny_base, folder)
    template.write_text("{{ messages }}")
    found = BaseReference(str(folder), str(template), "a test").identity()
    assert list(found) == ["model", "files", "template"]
    assert (found["model"], found["template"]) == (str(folder), digest("{{ messages }}"))
    assert [name for name, *_ in found["files"]] == sorted(p.name for p in folder.iterdir())
    plain = BaseReference(str(folder), None, "a test")
    before = plain.identity()
    assert (before["files"], before["template"]) == (found["files"], None)
    (folder / "config.json").touch()
    assert plain.identity() != before


def test_the_declared_template_replaces_that_of_the_base(tiny_base: Path, tmp_path: Path) -> None:
    own = BaseReference(str(tiny_base), None, "a test").tokenizer().chat_template
    template = tmp_path / "template.jinja"
    template.write_text(f"{{# ours #}}{own}")
    declared = BaseReference(str(tiny_base), str(template), "a test")
    assert declared.tokenizer().chat_template == f"{{# ours #}}{own}"
    out = tmp_path / "out"
    out.mkdir()
    assert prepare(declared, out)["template_fingerprint"] == digest(f"{{# ours #}}{own}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("model", "cause"),
    [
        ("no/such/folder", "is no model folder: it has no config.json"),
        ("package:no_such_package/model.gguf", "the package is not installed"),
        ("package:json/model.gguf", "no such file in the package"),
    ],
)
def test_a_base_that_is_not_there_is_said_alike_everywhere(
    way: Callable[[BaseReference], object], model: str, cause: str
) -> None:
    with pytest.raises(UserError, match=cause) as error:
        way(BaseReference(model, None, "tiny.yaml"))
    assert error.value.where == "tiny.yaml"


def test_a_template_that_is_not_there_is_said(tiny_base: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.jinja")
    for way in (BaseReference.identity, BaseReference.tokenizer):
        with pytest.raises(UserError, match=f"no such file {missing}"):
            way(BaseReference(str(tiny_base), missing, "tiny.yaml"))


def test_a_revision_must_be_pinned() -> None:
    with pytest.raises(UserError, match="not pinned to a commit"):
        BaseReference("hub:org/name@main", None, "tiny.yaml").config()
