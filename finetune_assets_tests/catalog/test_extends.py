"""`extends:`: what is merged how, where errors point, and that a changed recipe is seen."""

import re
from pathlib import Path

import dagster as dg
import pytest

from finetune_assets import settings
from finetune_assets.catalog.extends import PATHS
from finetune_assets.catalog.load import Entry, json_schema, load, names, parse
from finetune_assets.definitions import RESOURCES
from finetune_assets.defs.data_assets import raw_datasets
from finetune_assets.errors import UserError
from finetune_assets_tests.defs.sensing import keys, tick
from finetune_assets_tests.stores.s3 import S3

HOUSE = """\
base: {model: package:P/F.gguf, chat_template: chat.jinja}
training:
  learning_rate: 1e-4
  lora: {r: 64, targets: [q_proj, v_proj]}
  arguments: {adam_beta2: 0.95, lr_scheduler_kwargs: {num_cycles: 2}}
"""


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog with a house recipe that dataset `d` extends."""
    folder = tmp_path / "catalog"
    write(folder / "recipes" / "house.yaml", HOUSE)
    write(folder / "recipes" / "chat.jinja", "{{ messages }}")
    write(folder / "d.yaml", "extends: recipes/house.yaml\nsources: rows.jsonl\n")
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(folder))
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def error_of(name: str) -> str:
    with pytest.raises(UserError) as error:
        load(name)
    said = str(error.value)
    assert said.count("remedy:") == 1
    return said


def test_two_lines_are_a_dataset(catalog: Path) -> None:
    config = load("d").config
    assert config.base.model == "package:P/F.gguf"
    assert config.training.learning_rate == 1e-4
    assert config.training.lora.alpha == 32, "what no file names has its default"
    assert config.sources[0].path == "rows.jsonl"


def test_recipes_are_no_datasets(catalog: Path) -> None:
    assert names() == ["d"]


def test_mappings_merge_and_the_extending_file_wins(catalog: Path) -> None:
    write(
        catalog / "d.yaml",
        "extends: recipes/house.yaml\n"
        "sources: rows.jsonl\n"
        "base: ../models/mine\n"
        "training:\n"
        "  learning_rate: 3.0e-4\n"
        "  lora: {r: 8, targets: [o_proj]}\n"
        "  arguments: {lr_scheduler_kwargs: {num_cycles: 1}}\n",
    )
    config = load("d").config
    assert config.training.learning_rate == 3e-4
    assert (config.training.lora.r, config.training.lora.targets) == (8, ["o_proj"])
    assert config.training.arguments == {
        "adam_beta2": 0.95,
        "lr_scheduler_kwargs": {"num_cycles": 1},
    }
    assert config.base.model == "../models/mine"
    assert config.base.chat_template == str(catalog / "recipes" / "chat.jinja")


def test_of_several_the_later_wins_and_recipes_extend_recipes(catalog: Path) -> None:
    write(catalog / "recipes" / "base.yaml", "training: {learning_rate: 1e-5, seed: 5}\n")
    write(catalog / "recipes" / "deep" / "long.yaml", "extends: ../base.yaml\nmax_rejected: 0.5\n")
    recipe = "extends: [recipes/house.yaml, recipes/deep/long.yaml]\nsources: rows.jsonl\n"
    write(catalog / "d.yaml", recipe)
    config = load("d").config
    assert (config.training.learning_rate, config.training.seed) == (1e-5, 5)
    assert (config.training.lora.r, config.max_rejected) == (64, 0.5)


def test_two_recipes_may_share_a_third(catalog: Path) -> None:
    for name in ("a", "b"):
        write(catalog / "recipes" / f"{name}.yaml", "extends: house.yaml\n")
    write(catalog / "d.yaml", "extends: [recipes/a.yaml, recipes/b.yaml]\nsources: rows.jsonl\n")
    assert load("d").config.training.lora.r == 64


def test_a_null_takes_a_value_back(catalog: Path) -> None:
    write(catalog / "recipes" / "house.yaml", HOUSE + "  max_steps: 10\n")
    text = "extends: recipes/house.yaml\nsources: rows.jsonl\ntraining: {max_steps: null}\n"
    write(catalog / "d.yaml", text)
    assert load("d").config.training.max_steps is None


def test_paths_are_relative_to_the_file_that_they_stand_in(catalog: Path) -> None:
    write(
        catalog / "recipes" / "shared" / "all.yaml",
        "sources:\n"
        "  - rows.jsonl\n"
        "  - path: s3://bucket/rows.jsonl\n"
        "  - {path: /data/rows.jsonl}\n"
        "  - {query: SELECT 1, connection: 'sqlite:///rows of mine.db'}\n"
        "  - {query: SELECT 1, connection: 'sqlite:////data/rows.db'}\n"
        "  - {query: SELECT 1, connection: 'sqlite:///${ROWS}'}\n"
        "  - {query: SELECT 1, connection: 'postgresql://host/db'}\n"
        "  - {hub: o/n@r}\n"
        "base: {model: ../model, chat_template: ../chat.jinja}\n"
        "contamination: {benchmarks: [test.jsonl]}\n"
        "evaluation: {metrics: [exact_match, {name: sql_execution, database: db.sql}]}\n",
    )
    write(catalog / "recipes" / "shared" / "db.sql", "")
    write(catalog / "d.yaml", "extends: recipes/shared/all.yaml\n")
    config, shared = load("d").config, catalog / "recipes" / "shared"
    assert [s.path for s in config.sources[:3]] == [
        str(shared / "rows.jsonl"),
        "s3://bucket/rows.jsonl",
        "/data/rows.jsonl",
    ]
    assert [s.connection for s in config.sources[3:7]] == [
        f"sqlite:///{shared}/rows of mine.db",
        "sqlite:////data/rows.db",
        "sqlite:///${ROWS}",
        "postgresql://host/db",
    ]
    assert config.base.model == str(catalog / "recipes" / "model")
    assert config.base.chat_template == str(catalog / "recipes" / "chat.jinja")
    assert config.contamination.benchmarks == [str(shared / "test.jsonl")]
    assert config.evaluation.metrics[1].database == str(shared / "db.sql")  # type: ignore[union-attr]


def test_every_key_that_is_described_as_relative_is_made_absolute() -> None:
    schema = json_schema()
    described = {
        name
        for section in [schema, *schema["$defs"].values()]
        for name, key in section.get("properties", {}).items()
        if re.search(r"\brelative\b", key.get("description", ""))
    }
    assert {"path", "chat_template", "database", "extends"} <= described
    assert described - {"extends"} <= {key for keys in PATHS for key in keys}


@pytest.mark.parametrize(
    ("recipe", "dataset", "expected"),
    [
        # What is wrong stands in the recipe.
        ("training:\n  learning_rat: 1\n", "", ["recipes/house.yaml:2: ", "learning_rate"]),
        ("\ntraining: {max_length: 4}\n", "", ["recipes/house.yaml:2: ", "is 4"]),
        ("# x\ntrainig: {}\n", "", ["recipes/house.yaml:2: ", "did you mean 'training'"]),
        ("training:\n\n  arguments: {bf16: true}\n", "", ["recipes/house.yaml:3: ", "precision"]),
        ("a: 1\na: 2\n", "", ["recipes/house.yaml:2: ", "there twice"]),
        ("a: [\n", "", ["recipes/house.yaml:2: broken YAML"]),
        ("- a\n", "", ["recipes/house.yaml: the file is not a mapping"]),
        ("", "", ["recipes/house.yaml: the file is not a mapping"]),
        ("base: {chat_template: no.jinja}\n", "", ["recipes/house.yaml:1: ", "no such file"]),
        # What is wrong stands in the dataset file, or comes of both.
        ("training: {seed: 1}\n", "training:\n  sed: 2\n", ["d.yaml:5: ", "'seed'"]),
        ("training: {seed: 1}\n", "training:\n  seed: x\n", ["d.yaml:5: ", "is 'x'"]),
        (
            "training:\n  quantization: nf4\n",
            "training:\n  method: full\n",
            ["recipes/house.yaml:2: ", "quantization: none"],
        ),
        ("training: {method: lora}\n", "training:\n  method: full\n", ["d.yaml:5: ", "none"]),
        (
            "max_rejectd: 0\n",
            "training:\n  sed: 2\n",
            ["'max_rejected'", "'seed'", "recipes/house.yaml:1", "d.yaml:5"],
        ),
    ],
)
def test_errors_name_the_file_in_which_it_really_stands(
    catalog: Path, recipe: str, dataset: str, expected: list[str]
) -> None:
    write(catalog / "recipes" / "house.yaml", recipe)
    write(
        catalog / "d.yaml",
        f"extends: recipes/house.yaml\nsources: rows.jsonl\nbase: {{model: m}}\n{dataset}",
    )
    said = error_of("d")
    for part in expected:
        assert part in said
    assert said.startswith(str(catalog))


@pytest.mark.parametrize(
    ("extends", "expected"),
    [
        ("recipes/hous.yaml", ["d.yaml:3: ", "no such file", "did you mean 'house.yaml'?"]),
        ("[recipes/house.yaml,\n  none/x.yaml]", ["d.yaml:4: ", "no such file"]),
        ("recipes", ["d.yaml:3: ", "no such file"]),
        ("foo://x/y.yaml", ["d.yaml:3: ", "cannot be read", "foo"]),
        ("3", ["d.yaml:3: ", "is not a path"]),
        ("[{a: b}]", ["d.yaml:3: ", "is not a path"]),
        ("d.yaml", ["d.yaml:3: ", "in a circle"]),
        ("recipes/round.yaml", ["recipes/other.yaml:1: ", "in a circle", "round.yaml"]),
        ("recipes/binary.yaml", ["recipes/binary.yaml: the file is not UTF-8"]),
    ],
)
def test_what_cannot_be_extended_is_one_error(
    catalog: Path, extends: str, expected: list[str]
) -> None:
    write(catalog / "recipes" / "round.yaml", "extends: other.yaml\n")
    write(catalog / "recipes" / "other.yaml", "extends: ./round.yaml\n")
    (catalog / "recipes" / "binary.yaml").write_bytes(b"a: \xff\n")
    write(catalog / "d.yaml", f"sources: rows.jsonl\nbase: b\nextends: {extends}\n")
    said = error_of("d")
    for part in expected:
        assert part in said


def test_anchors_and_merge_keys_work_and_keep_their_lines() -> None:
    text = (
        "sources: [{path: a, <<: &s {format: text, weight: 2}}, {path: b, <<: *s, weight: 3}]\n"
        "base: b\n"
    )
    sources = parse(text, "x.yaml").sources
    assert [(s.format, s.weight) for s in sources] == [("text", 2), ("text", 3)]
    with pytest.raises(UserError, match=r"x\.yaml:2: .*contains itself"):
        parse("base: b\nsources: &a [*a]\n", "x.yaml")


def test_a_changed_recipe_is_seen_when_an_asset_runs(
    project: Path, instance: dg.DagsterInstance
) -> None:
    catalog = project / "catalog"
    recipe = write(catalog / "recipes" / "rows.yaml", "sources: [{path: ../rows.jsonl}]\n")
    text = (catalog / "tiny.yaml").read_text().replace("sources:\n  - path: rows.jsonl\n", "")
    write(catalog / "tiny.yaml", f"extends: recipes/rows.yaml\n{text}")

    def rows() -> tuple[int, bool]:
        done = dg.materialize(
            [raw_datasets], instance=instance, partition_key="tiny", resources=RESOURCES
        )
        (made,) = done.asset_materializations_for_node("raw_datasets")
        return made.metadata["dagster/row_count"].value, made.metadata["reused"].value  # type: ignore[return-value]

    assert rows() == (60, False)
    assert rows() == (60, True)
    _, cursor = tick(instance, None)
    write(recipe, "sources: [{path: ../rows.jsonl, sample: 20}]\n")
    result, _ = tick(instance, cursor)
    assert [key.split(":")[0] for key in keys(result)] == ["tiny"], "the sensor sees it too"
    assert rows() == (20, False)


def test_a_catalog_on_s3_and_a_recipe_in_another_bucket(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    # A client of another process, so that nothing is remembered on the way.
    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    catalog, other = s3.make_bucket("extends-catalog"), s3.make_bucket("extends-other")
    monkeypatch.setenv(settings.CATALOG_VARIABLE, f"{catalog}/catalog")
    dataset = f"extends: [recipes/a.yaml, '{other}/b.yaml']\nsources: rows.jsonl\nbase: package:b\n"
    files.pipe_file(f"{catalog}/catalog/d.yaml", dataset.encode())
    files.pipe_file(f"{catalog}/catalog/recipes/a.yaml", b"extends: deep/c.yaml\n")
    c = b"contamination: {benchmarks: [../test.jsonl, s3://x/y]}\n"
    files.pipe_file(f"{catalog}/catalog/recipes/deep/c.yaml", c)
    files.pipe_file(f"{other}/b.yaml", b"training: {seed: 1}\n")

    def loaded() -> Entry:
        return load("d")

    assert names() == ["d"]
    assert loaded().config.training.seed == 1
    assert loaded().config.contamination.benchmarks == [
        f"{catalog}/catalog/recipes/test.jsonl",
        "s3://x/y",
    ]
    files.pipe_file(f"{other}/b.yaml", b"training: {seed: 2}\n")
    assert loaded().config.training.seed == 2
    files.pipe_file(f"{other}/b.yaml", b"training: {sed: 2}\n")
    assert error_of("d").startswith(f"{other}/b.yaml:1: ")
    files.rm_file(f"{other}/b.yaml")
    assert error_of("d").startswith(f"{catalog}/catalog/d.yaml:1: `extends`: no such file {other}/")


def test_a_recipe_without_access_is_one_error(
    s3: S3, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    bucket = s3.make_bucket("extends-denied")
    write(catalog / "d.yaml", f"extends: {bucket}/a.yaml\nsources: rows.jsonl\n")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            assert f"d.yaml:1: `extends`: {bucket}/a.yaml cannot be read: " in error_of("d")
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
