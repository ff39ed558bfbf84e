"""The command line: what it shows of good data, and what it says of bad."""

import json
from pathlib import Path

import pytest

from finetune_assets import settings
from finetune_assets.catalog.load import json_schema
from finetune_assets_tests.commands.invoking import invoke
from finetune_assets_tests.tiny import make_base

ROOT = Path(__file__).parents[2]


def test_check_shows_rows_as_the_model_will_see_them(project: Path) -> None:
    code, output = invoke("check", "tiny")
    assert code == 0, output
    assert "60 of 60 rows kept" in output
    assert "what is question 0?<|im_end|>" in output
    assert "the answer is 0<|im_end|>" in output
    assert "splits: train" in output


def test_check_goes_on_after_a_bad_file(project: Path) -> None:
    (project / "catalog" / "bad.yaml").write_text("sources: rows.jsonl\nbas: x\n")
    code, output = invoke("check")
    assert code == 1
    assert "did you mean 'base'" in output
    assert "✓ tiny" in output


def test_schema_is_written(tmp_path: Path) -> None:
    code, _ = invoke("schema", str(tmp_path / "schema.json"))
    assert code == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()


def test_run_needs_a_name_that_exists(project: Path) -> None:
    assert invoke("run") == (1, invoke("run")[1])
    assert "the catalog has: tiny" in invoke("run")[1]
    code, output = invoke("run", "tinny")
    assert code == 1
    assert "did you mean 'tiny'" in output


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rows.jsonl", "none.jsonl", ["none.jsonl", "no such file", "sources[0].path"]),
        ("rows.jsonl", "broken.jsonl", ["broken.jsonl:2", "broken JSON"]),
        ("rows.jsonl", "empty.jsonl", ["empty.jsonl", "the file has no rows"]),
        ("rows.jsonl", "columns.jsonl", ["columns.jsonl:1", "no known format", "columns:"]),
        ("rows.jsonl", "answers.jsonl", ["answers.jsonl:1", "empty answer", "max_rejected"]),
        ("rows.jsonl", "few.jsonl", ["tiny.yaml", "split has 0 of 2 rows", "splits."]),
        ("base: ", "base: package:no_such_package/x.gguf #", ["tiny.yaml", "not installed"]),
        ("base: ", "base: no/such/folder #", ["tiny.yaml", "no model folder"]),
        ("base: ", "base: hub:org/name@main #", ["tiny.yaml", "not pinned to a commit"]),
        ("base: ", "base: mute #", ["tiny.yaml", "no chat template", "chat_template"]),
        (
            "[exact_match]",
            "[{name: sql_execution, database: none.sql}]",
            ["evaluation.metrics.database", "no such file", "none.sql"],
        ),
        (
            "base: ",
            "base: {model: template, chat_template: bad.jinja} #",
            ["chat template", "that needs to be closed is 'for'", "declare a template"],
        ),
        ("training:", "trainig:", ["tiny.yaml:5", "unknown key", "did you mean 'training'"]),
    ],
)
def test_bad_input_is_one_clear_error(
    project: Path, old: str, new: str, expected: list[str]
) -> None:
    catalog = project / "catalog"
    good = '{"prompt": "a", "completion": "b"}\n'
    (catalog / "broken.jsonl").write_text(good + '{"prompt": \n')
    (catalog / "empty.jsonl").write_text("")
    (catalog / "columns.jsonl").write_text('{"x": "a", "y": "b"}\n')
    (catalog / "answers.jsonl").write_text('{"prompt": "a", "completion": ""}\n' + good)
    (catalog / "few.jsonl").write_text(good + good.replace("a", "c"))
    make_base(catalog / "mute", template=None)
    make_base(catalog / "template")
    (catalog / "bad.jinja").write_text("{% for m in messages %}")
    path = catalog / "tiny.yaml"
    path.write_text(path.read_text().replace(old, new))
    code, output = invoke("check", "tiny")
    assert code == 1
    for part in [*expected, "remedy:"]:
        assert part in output
    assert "Traceback" not in output


def test_home_prints_what_a_shell_can_take(project: Path) -> None:
    code, output = invoke("home")
    assert code == 0
    assert f"export {settings.DAGSTER_VARIABLE}={project / 'dagster'}" in output
    assert (project / "dagster" / "dagster.yaml").exists()
