"""Dataset files: defaults, errors that name the key, and the schema for editors."""

import json
from pathlib import Path

import pytest

from finetune_assets import settings
from finetune_assets.catalog.load import json_schema, load, names, parse
from finetune_assets.errors import UserError

ROOT = Path(__file__).parents[2]
MINIMAL = "sources:\n  - path: rows.jsonl\nbase: models/base\n"


def test_three_lines_are_a_dataset() -> None:
    config = parse(MINIMAL, "x.yaml")
    assert config.sources[0].path == "rows.jsonl"
    assert config.base.model == "models/base"
    assert config.training.quantization == "nf4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            MINIMAL + "trainig: {}\n",
            ["x.yaml:4", "unknown key 'trainig'", "did you mean 'training'"],
        ),
        (
            MINIMAL + "training:\n  learning_rat: 1\n",
            ["x.yaml:5", "'training.learning_rat'", "did you mean 'learning_rate'"],
        ),
        (
            "sources:\n  - path: a\n    formt: auto\nbase: b\n",
            ["x.yaml:3", "'sources.0.formt'", "did you mean 'format'"],
        ),
        (MINIMAL + "training: {max_length: 4}\n", ["x.yaml:4", "training.max_length", "is 4"]),
        ("base: b\n", ["missing key 'sources'"]),
        ("sources: [a\n", ["x.yaml:2", "broken YAML"]),
        ("just text\n", ["not a mapping"]),
        (
            MINIMAL + "evaluation: {metrics: [sql_execution]}\n",
            ["sql_execution needs a database"],
        ),
        (MINIMAL + "promotion: {metric: chrf}\n", ["promotion.metric is 'chrf'", "not measured"]),
        (
            MINIMAL + "splits: {test: 0.1, test: 0.5}\n",
            ["x.yaml:4", "'test' is there twice"],
        ),
        (MINIMAL + "splits: {test: 0.6, validation: 0.5}\n", ["leave nothing to train on"]),
        ("sources:\n  - {path: a, sample: 1.0}\nbase: b\n", ["x.yaml:2", "sample"]),
        ("sources:\n  - {path: a, hub: o/n@r}\nbase: b\n", ["exactly one of"]),
    ],
)
def test_errors_name_file_line_key_and_remedy(text: str, expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse(text, "x.yaml")
    for part in expected:
        assert part in str(error.value)
    assert "remedy:" in str(error.value)


def test_an_unknown_dataset_names_the_nearest(project: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        load("tinny")


def test_paths_are_relative_to_the_file(project: Path) -> None:
    entry = load("tiny")
    assert entry.locate("rows.jsonl") == str(project / "catalog" / "rows.jsonl")
    assert entry.locate("../data/a.csv") == str(project / "data" / "a.csv")
    assert entry.locate("s3://bucket/a.csv") == "s3://bucket/a.csv"


def test_a_missing_catalog_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UserError, match=settings.CATALOG_VARIABLE):
        names()


def test_every_shipped_file_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(ROOT / "catalog"))
    assert names()
    for name in names():
        assert load(name).config.description


def test_the_committed_schema_is_the_code_s() -> None:
    committed = json.loads((ROOT / "catalog" / "schema.json").read_text())
    assert committed == json_schema(), "write it again: finetune schema catalog/schema.json"


def test_a_bare_off_is_the_word() -> None:
    text = MINIMAL + "cleaning: {personal_data: {action: off}, near_duplicates: {action: off}}\n"
    cleaning = parse(text, "x.yaml").cleaning
    assert (cleaning.personal_data.action, cleaning.near_duplicates.action) == ("off", "off")
