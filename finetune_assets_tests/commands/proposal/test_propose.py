"""`finetune init`: the dataset files it proposes run as they are, and say what was seen."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.catalog.load import json_schema, load
from finetune_assets_tests.commands.invoking import invoke
from finetune_assets_tests.commands.proposal.samples import (
    COUNT,
    SAMPLES,
    answer,
    calling,
    init,
    jsonl,
    question,
    question_table,
    rows,
)
from finetune_assets_tests.tiny import make_base


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
