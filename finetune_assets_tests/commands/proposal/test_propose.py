"""`finetune init`: the dataset files it proposes run as they are, and say what was seen."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from finetune_assets import settings
from finetune_assets.catalog.load import json_schema, load
from finetune_assets.commands.cli import app
from finetune_assets.commands.proposal.training import max_length, recipe
from finetune_assets_tests.tiny import make_base

Rows = list[dict[str, Any]]
COUNT = 30
WORDS = ("river", "stone", "candle", "forest", "market", "window", "copper", "garden", "signal")


def question(i: int) -> str:
    """Questions of which no two are nearly the same."""
    first, second, third = (WORDS[n % len(WORDS)] for n in (i, i // 3, i * 7 + i // 10))
    return f"{first} {second} {i * i} {third}, is it {i}?"


def answer(i: int) -> str:
    return f"The answer is {i}."


def rows(make: Callable[[int], dict[str, Any]]) -> Rows:
    return [make(i) for i in range(COUNT)]


def turns(i: int) -> Rows:
    return [
        {"role": "user", "content": question(i)},
        {"role": "assistant", "content": answer(i)},
    ]


def calling(i: int) -> dict[str, Any]:
    said = [
        ("human", question(i)),
        ("function_call", json.dumps({"name": "look_up", "arguments": {"number": i}})),
        ("observation", json.dumps({"found": i})),
        ("gpt", answer(i)),
    ]
    return {
        "conversations": [{"from": name, "value": value} for name, value in said],
        "tools": json.dumps([{"name": "look_up", "description": "Looks up.", "parameters": {}}]),
    }


def jsonl(path: Path, content: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def question_table() -> pl.DataFrame:
    return pl.DataFrame(rows(lambda i: {"question": question(i), "answer": answer(i)}))


SAMPLES: dict[str, Callable[[int], dict[str, Any]]] = {
    "messages": lambda i: {"messages": turns(i)},
    "sharegpt": calling,
    "alpaca": lambda i: {"instruction": question(i), "input": "", "output": answer(i)},
    "prompt_completion": lambda i: {"prompt": question(i), "completion": answer(i)},
    "preference": lambda i: {"prompt": question(i), "chosen": answer(i), "rejected": "No."},
    "feedback": lambda i: {"messages": turns(i), "label": i % 3 > 0},
    "text": lambda i: {"text": f"{question(i)} {answer(i)} " * 3},
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose catalog does not exist yet, and its folder of data, both empty."""
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(tmp_path / "catalog"))
    monkeypatch.setenv(settings.STORAGE_VARIABLE, str(tmp_path / "storage"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def init(base: Path, origin: str, *options: str, name: str = "new") -> str:
    """The dataset file that is written; it passes `finetune check`."""
    code, output = invoke("init", name, "--from", origin, "--base", str(base), *options)
    assert code == 0, output
    assert f"finetune check {name}" in output
    code, output = invoke("check", name)
    assert code == 0, output
    assert f"✓ {name}" in output
    return Path("catalog", f"{name}.yaml").read_text()


def refused(*arguments: str) -> str:
    code, output = invoke("init", *arguments)
    assert code == 1, output
    assert "remedy:" in output
    return output


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_comes_back_from_its_file(data: Path, tiny_base: Path, name: str) -> None:
    jsonl(data / "rows.jsonl", rows(SAMPLES[name]))
    text = init(tiny_base, "data/rows.jsonl")
    source = load("new").config.sources[0]
    assert source.path == "../data/rows.jsonl"
    assert source.format == name
    assert f"format {name}" in text
    assert all(len(line) <= 100 for line in text.splitlines() if "base" not in line)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "jsonl.gz", "tsv"])
def test_types_of_files(data: Path, tiny_base: Path, suffix: str) -> None:
    table, path = question_table(), data / f"rows.{suffix}"
    match suffix:
        case "csv" | "tsv":
            table.write_csv(path, separator="," if suffix == "csv" else "\t")
        case "parquet":
            table.write_parquet(path)
        case "json":
            path.write_text(json.dumps(table.to_dicts(), indent=2))
        case _:
            table.write_ndjson(path, compression="gzip", check_extension=False)
    text = init(tiny_base, str(path))
    assert load("new").config.sources[0].format == "prompt_completion"
    assert "prompt from `question`, completion from `answer`" in text
    assert "read all 30 rows" in text


def test_tools_bring_a_template_that_shows_them(data: Path, tiny_base: Path) -> None:
    jsonl(data / "rows.jsonl", rows(calling))
    code, output = invoke("init", "new", "--from", "data", "--base", str(tiny_base))
    assert code == 0
    assert load("new").config.base.chat_template == "new.jinja"
    assert '{"name": "look_up", "arguments": {"number": 0}}' in output


def test_what_was_seen_stands_in_the_file(data: Path, tiny_base: Path) -> None:
    content = rows(SAMPLES["prompt_completion"])
    content += [content[0], {"prompt": "Who?", "completion": ""}]
    content[1]["completion"] = "Write to jane@example.com."
    jsonl(data / "rows.jsonl", [{**r, "topic": "ab"[i % 2]} for i, r in enumerate(content)])
    text = init(tiny_base, "data/rows.jsonl")
    for part in [
        "1 of 32 rows unusable: 1 x empty answer",
        "1 exact duplicates",
        "rows with personal data: 1 (email 1)",
        "# personal_data: {action: redact}",
        "# attributes: [topic]",
        "columns not used: topic",
        "languages",
        "99% have at most",
    ]:
        assert part in text


def test_ambiguous_columns_are_settled(data: Path, tiny_base: Path) -> None:
    content = rows(lambda i: {"question": question(i), "input": "x", "answer": answer(i)})
    jsonl(data / "rows.jsonl", content)
    text = init(tiny_base, "data/rows.jsonl")
    assert load("new").config.sources[0].columns.prompt == "question"
    assert "`prompt` could also be `input`" in text


def test_unused_texts_are_offered_as_a_template(data: Path, tiny_base: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        context = f"A passage of text about {question(i)}"
        return {"passage": context, "question": question(i), "answer": answer(i)}

    jsonl(data / "rows.jsonl", rows(row))
    text = init(tiny_base, "data/rows.jsonl")
    assert '#   prompt: "passage: {{ passage }}\\nquestion: {{ question }}"' in text


@pytest.mark.parametrize(
    ("splits", "column", "said"),
    [
        (
            ["train", "train", "validation", "test"],
            "split",
            "Rows of each: train 16, validation 7, test 7",
        ),
        (["train", ""], "split", "train 15, empty 15"),
        (["train", "", None], "split", "train 10, empty 20"),
        (["train", "test"], None, "has no rows for validation"),
        (["train", "dev"], None, "must say train, validation or test"),
    ],
)
def test_split_column(
    data: Path, tiny_base: Path, splits: list[str | None], column: str | None, said: str
) -> None:
    def row(i: int) -> dict[str, Any]:
        return {**SAMPLES["prompt_completion"](i), "split": splits[i % len(splits)]}

    jsonl(data / "rows.jsonl", rows(row))
    text = init(tiny_base, "data/rows.jsonl")
    assert load("new").config.splits.column == column
    assert said in text.replace("\n  #", "")


def test_folder_of_several_formats_and_of_documents(data: Path, tiny_base: Path) -> None:
    jsonl(data / "a.jsonl", rows(SAMPLES["alpaca"]))
    jsonl(data / "b.jsonl", rows(lambda i: SAMPLES["messages"](i + COUNT)))
    init(tiny_base, "data")
    assert load("new").config.sources[0].format == "auto"
    documents = data / "documents"
    documents.mkdir()
    for i in range(COUNT):
        (documents / f"{i}.md").write_text(question(i) * 3)
    text = init(tiny_base, "data/documents/*.md", name="documents")
    assert load("documents").config.evaluation.metrics == []
    assert "30 files: format text" in text


def test_of_much_data_the_first_rows_are_read(data: Path, tiny_base: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"prompt": f"{question(i)} {i**3:012x}", "completion": answer(i)}

    jsonl(data / "a.jsonl", [row(i) for i in range(6000)])
    jsonl(data / "b.jsonl", [row(i) for i in range(6000, 6100)])
    code, output = invoke("init", "new", "--from", "data", "--base", str(tiny_base))
    assert code == 0, output
    text = Path("catalog/new.yaml").read_text()
    about = int(text.split("of about ")[1].split()[0])
    assert "the first 1100 of about" in text
    assert about == pytest.approx(6100, rel=0.1)


def test_queries(data: Path, tiny_base: Path) -> None:
    with sqlite3.connect(data / "rows.db") as db:
        db.execute("CREATE TABLE t (question TEXT, answer TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", question_table().rows())
    db.close()
    query = "SELECT question, answer\nFROM t -- all: of it\nWHERE answer <> ''"
    text = init(tiny_base, "sqlite:///data/rows.db", "--query", query)
    source = load("new").config.sources[0]
    assert source.query == query
    assert source.connection == "sqlite:///../data/rows.db"
    assert "query: |-\n      SELECT question, answer\n      FROM t" in text


def test_passwords_come_from_the_environment(
    data: Path, tiny_base: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = postgres.split("@")[0].rsplit(":", 1)[1]
    monkeypatch.setenv("ROWS_PASSWORD", password)
    uri = postgres.replace(password, "${ROWS_PASSWORD}")
    query = "SELECT i || '?' AS question, (i * i)::text AS answer FROM generate_series(1, 2500) i"
    code, output = invoke("init", "new", "--from", uri, "--base", str(tiny_base), "--query", query)
    assert code == 0, output
    text = Path("catalog/new.yaml").read_text()
    assert "the first 2000 of 2500 rows" in text
    assert password not in text + output
    assert load("new").config.sources[0].connection == uri


def test_functions(data: Path, tiny_base: Path) -> None:
    Path("made_rows.py").write_text(
        "def rows():\n    for i in range(10**9):\n"
        "        yield {'prompt': f'{i * i:x} is {i}?', 'completion': str(i)}\n"
    )
    arguments = ("init", "new", "--from", "made_rows:rows", "--base", str(tiny_base))
    code, output = invoke(*arguments)
    assert code == 0, output
    assert load("new").config.sources[0].function == "made_rows:rows"
    assert "how many there are was not counted" in Path("catalog/new.yaml").read_text()


def test_base_and_data_outside_the_project_are_absolute(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = jsonl(tmp_path_factory.mktemp("outside") / "rows: #1.jsonl", rows(SAMPLES["alpaca"]))
    init(make_base(data / "base"), str(outside))
    assert load("new").config.sources[0].path == str(outside)
    assert load("new").config.base.model == "../data/base"


def test_schema_is_written_once(data: Path, tiny_base: Path) -> None:
    jsonl(data / "rows.jsonl", rows(SAMPLES["alpaca"]))
    text = init(tiny_base, "data/rows.jsonl")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert json.loads(Path("catalog/schema.json").read_text()) == json_schema()
    Path("catalog/schema.json").write_text("{}")
    init(tiny_base, "data/rows.jsonl", name="other")
    assert Path("catalog/schema.json").read_text() == "{}"


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


def test_length_holds_nearly_all_rows_within_the_models_limit() -> None:
    assert max_length([100] * 99 + [5000], None) == 256
    assert max_length([100] * 98 + [5000] * 2, None) == 8192
    assert max_length([100] * 98 + [5000] * 2, 4096) == 4096
    assert max_length([20_000], None) == 8192
    assert max_length([100], 128) == 128


@pytest.mark.parametrize(
    ("train_rows", "contexts", "expected"),
    [(60, 10, (5, 1)), (60, 60, (5, 4)), (3000, 600, (3, 8)), (10**6, 10**5, (1, 32))],
)
def test_recipe(train_rows: int, contexts: int, expected: tuple[int, int]) -> None:
    assert recipe(train_rows, contexts) == expected
