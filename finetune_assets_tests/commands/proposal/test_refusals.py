"""`finetune init` says what it cannot do, and writes no file."""

from pathlib import Path

import pytest

from finetune_assets_tests.commands.invoking import invoke
from finetune_assets_tests.commands.proposal.samples import (
    SAMPLES,
    answer,
    init,
    jsonl,
    question,
    refused,
    rows,
)


def test_a_dataset_is_not_overwritten(data: Path, tiny_base: Path) -> None:
    jsonl(data / "rows.jsonl", rows(SAMPLES["alpaca"]))
    init(tiny_base, "data/rows.jsonl")
    Path("catalog/new.yaml").write_text("mine")
    assert "--force" in refused("new", "--from", "data", "--base", str(tiny_base))
    assert Path("catalog/new.yaml").read_text() == "mine"
    init(tiny_base, "data/rows.jsonl", "--force")


def test_columns_of_no_format(data: Path, tiny_base: Path) -> None:
    jsonl(data / "rows.jsonl", rows(lambda i: {"ask": question(i), "number": i, "say": answer(i)}))
    output = refused("new", "--from", "data/rows.jsonl", "--base", str(tiny_base))
    for part in ['ask: "river', "number: 0", 'prompt: "{{ ask }}"', 'completion: "{{ say }}"']:
        assert part in output
    # The snippet is a dataset file.
    snippet = output.split("answered:\n")[1].replace("MODEL", str(tiny_base))
    Path("catalog").mkdir()
    Path("catalog/new.yaml").write_text(snippet)
    assert invoke("check", "new")[0] == 0, invoke("check", "new")[1]


def test_columns_of_no_format_that_are_no_names(data: Path, tiny_base: Path) -> None:
    jsonl(data / "rows.jsonl", rows(lambda i: {"My Q": question(i), "My A": answer(i)}))
    output = refused("new", "--from", "data/rows.jsonl", "--base", str(tiny_base))
    assert 'prompt: "My Q"' in output
    assert 'completion: "My A"' in output


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://user:hunter2@localhost/db",
        "postgresql://user:${A}hunter2@localhost/db",
        "postgresql://localhost/db?user=me&password=hunter2",
    ],
)
def test_passwords_do_not_get_into_the_file(data: Path, uri: str) -> None:
    output = refused("new", "--from", uri, "--query", "SELECT 1")
    assert "${DATABASE_PASSWORD}" in output
    assert "hunter2" not in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["new", "--from", "none.jsonl"], "no such file"),
        (["new", "--from", "hub:org/name"], "the revision is missing"),
        (["new", "--from", "postgresql://host/db"], "--query"),
        (["a/b", "--from", "data"], "cannot name a dataset"),
        (["new", "--from", "postgresql://u:${NOT_SET}@h/d", "--query", "SELECT 1"], "NOT_SET"),
    ],
)
def test_wrong_arguments(data: Path, tiny_base: Path, arguments: list[str], said: str) -> None:
    assert said in refused(*arguments, "--base", str(tiny_base))


def test_without_the_packaged_base_one_must_be_named(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetune_assets.commands.proposal.sample.DEFAULT_BASE", "package:no_such/x.gguf"
    )
    jsonl(data / "rows.jsonl", rows(SAMPLES["alpaca"]))
    assert "give --base" in refused("new", "--from", "data")
