"""YAML 1.2: words, numbers, merges, and files that are made to harm or are broken."""

import contextlib
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_assets import settings
from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.document import VALUES, decode, place_of, plain, read
from finetune_assets.catalog.load import json_schema, load, parse
from finetune_assets.errors import UserError

HEAD = "sources: rows.jsonl\nbase: b\n"


def error_of(text: str) -> str:
    with pytest.raises(UserError) as error:
        parse(text, "x.yaml")
    said = str(error.value)
    assert said.count("remedy:") == 1
    assert len(said) < 10_000
    return said


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n", "Off", "1:30", "1e", "0x"])
def test_words_are_words(word: str) -> None:
    assert parse(f"{HEAD}description: {word}\n", "x.yaml").description == word


@pytest.mark.parametrize(
    ("written", "number"),
    [("1e-8", 1e-8), ("2E+3", 2e3), ("1.5e-4", 1.5e-4), (".5", 0.5), ("3", 3.0), ("010", 10.0)],
)
def test_numbers_are_plain_numbers(written: str, number: float) -> None:
    rate = parse(f"{HEAD}training: {{learning_rate: {written}}}\n", "x.yaml").training.learning_rate
    assert rate == number
    assert type(rate) is float, "what a library adds to numbers has no place in fingerprints"


def booleans() -> list[str]:
    """Return every key of `training`, `arguments` apart, that is a boolean."""
    properties = json_schema()["$defs"]["Training"]["properties"]
    return [
        key
        for key, value in properties.items()
        if "boolean" in (value.get("type"), *(each.get("type") for each in value.get("anyOf", [])))
    ]


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "True "])
@pytest.mark.parametrize("key", booleans())
def test_only_true_and_false_are_booleans(key: str, word: str) -> None:
    text = f"{HEAD}training:\n  {key}: {word}\n"
    if word.strip() == "True":
        assert getattr(parse(text, "x.yaml").training, key) is True
        return
    said = error_of(text)
    assert said.startswith(f"x.yaml:4: 'training.{key}' is '{word}'")
    assert "write true or false" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cleaning: {mojibake: no}\n", ["x.yaml:3", "true or false for 'cleaning.mojibake'"]),
        ("training: {arguments: {eval_on_start: yes}}\n", ["x.yaml:3", "true or false"]),
        (
            "training:\n  arguments:\n    activation_checkpointing_kwargs: {use_reentrant: no}\n",
            ["x.yaml:5", "`use_reentrant` is the word 'no'", "true or false"],
        ),
        ("cleaning: {personal_data: {action: no}}\n", ["x.yaml:3", "'off'"]),
    ],
)
def test_former_booleans_are_errors_everywhere(text: str, expected: list[str]) -> None:
    said = error_of(HEAD + text)
    for part in expected:
        assert part in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "training:\n  seed: 1\n  seed: 2\n",
            ["x.yaml:5", "'seed' is there twice, first on line 4"],
        ),
        ("training:\n  seed: 1\n  'seed': 2\n", ["x.yaml:5", "first on line 4"]),
        ("training: {<<: {seed: 1},\n  <<: {seed: 2}}\n", ["x.yaml:4", "'<<' is there twice"]),
        ("? [a]\n: 1\n", ["x.yaml:3", "a key is a list or a mapping"]),
        ("x: &x {y: *x}\n", ["x.yaml:3", "contains itself"]),
        ("x: &x {<<: *x}\n", ["x.yaml:3", "contains itself"]),
        ("x: {<<: 3}\n", ["x.yaml:3", "`<<` is no mapping"]),
        ("x: {<<: [{a: 1}, 3]}\n", ["x.yaml:3", "`<<` is no mapping"]),
        ("x: *y\n", ["x.yaml:3", "undefined alias 'y'"]),
        ("---\na: b\n", ["x.yaml:3", "single document", "another document"]),
        ("x: !!python/object/apply:os.system [ls]\n", ["x.yaml:3", "python/object/apply"]),
        ("x: !!set {a, b}\n", ["x.yaml:3", "2002:set"]),
        ("x: !mine y\n", ["x.yaml:3", "!mine"]),
        ("!!omap x: y\n", ["x.yaml:3", "expected a sequence"]),
        ("x: !!int ''\n", ["x.yaml:3", "broken YAML"]),
        ("x: 2026-02-30\n", ["x.yaml:3", "day is out of range"]),
        ("x: a\x00b\n", ["x.yaml:3", "character"]),
        ('x: "\\U99999999"\n', ["x.yaml", "not valid YAML"]),
        ("x: " + "{a: " * 1000 + "1" + "}" * 1000 + "\n", ["x.yaml:3", "nested more than"]),
        pytest.param("x: " + "[" * 5000 + "\n", ["x.yaml:3", "nested more than"], id="deep"),
    ],
)
def test_what_no_dataset_file_holds_is_one_error(text: str, expected: list[str]) -> None:
    said = error_of(HEAD + text)
    for part in expected:
        assert part in said


def levels(first: str, level: str, times: int = 9) -> str:
    lines = [f"m0: &m0 {first}"]
    for depth in range(1, 9):
        lines.append(f"m{depth}: &m{depth} {level % ','.join([f'*m{depth - 1}'] * times)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        levels("{a: 1}", "{<<: [%s]}"),
        levels("[a, b]", "[%s]"),
        levels("{a: 1}", "!!omap [{a: {<<: [%s]}}]"),
        "".join(f"x{i}: &x{i} [*x{i - 1}]\n" if i else "x0: &x0 [a]\n" for i in range(900)),
        f"d: &d {'x' * 100_000}\nx: [{', '.join(['*d'] * 1000)}]\n",
        "sample: [" + ", ".join(["1"] * 5000) + "]\n",
        "training: {sample_prompts: [" + ", ".join(["1"] * 5000) + "]}\n",
        "".join(f"k{i}: 1\n" for i in range(2000)),
    ],
    ids=["merges", "aliases", "tags", "chain", "long", "list", "errors", "keys"],
)
def test_no_file_holds_the_reader(text: str) -> None:
    began = time.monotonic()
    assert error_of(text + HEAD).startswith("x.yaml")
    assert time.monotonic() - began < 10


def test_aliases_are_written_out_up_to_a_bound() -> None:
    text = "a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {x: 1, y: 1}, y: 2}\n"
    assert plain(read(text, "x.yaml")) == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
        "c": {"x": 1, "y": 2},
    }
    with pytest.raises(UserError, match=f"more than {VALUES} values"):
        read("a: &a [1, 2]\nb: [" + ", ".join(["*a"] * (VALUES // 2)) + "]\n", "x.yaml")


def test_of_several_merged_mappings_the_first_wins_and_keeps_its_line() -> None:
    file = read("a: &a {x: 1}\nb: &b\n  x: 2\n  y: 3\nc:\n  <<: [*a, *b]\n  z: 4\n", "f")
    assert plain(file.value["c"]) == {"x": 1, "y": 3, "z": 4}
    places = {key: place_of(("c", key), file) for key in "xyz"}
    assert places == {"x": "f:1", "y": "f:4", "z": "f:7"}


def test_an_anchor_may_be_set_again() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plain(read("a: &a 1\nb: &a 2\nc: *a\n", "f")) == {"a": 1, "b": 2, "c": 2}


def test_bytes_that_are_no_text_name_the_line() -> None:
    with pytest.raises(UserError, match=r"not UTF-8: .* on line 2"):
        decode(b"a: b\nc: \xff\n", "x.yaml")


def test_the_byte_order_mark_of_an_editor_is_no_part_of_a_key() -> None:
    assert parse("\ufeff" + HEAD.replace("\n", "\r\n"), "x.yaml").base.model == "b"


def test_a_place_is_that_of_the_innermost_key_that_is_written() -> None:
    file = read("a:\n  - b: 1\n  -\n    c: 2\n", "f")
    assert place_of(("a", 1, "c"), file) == "f:4"
    assert place_of(("a", 1, "d", "e"), file) == "f:4"
    assert place_of(("a", 2), file) == "f:1"
    assert place_of(("a", 1, "d"), file, whole=True) is None
    assert place_of(("z",), file) is None


@given(st.text(alphabet="abk:,[]{}&*!<>|-#'\"\\ \n%?~1.e", max_size=60))
def test_any_text_is_a_dataset_or_one_error(text: str) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(parse(HEAD + text, "x.yaml"), Dataset)


def test_loading_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Path(__file__).parents[2] / "catalog"
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(catalog))
    load("text_to_sql")
    times = []
    for _ in range(5):
        began = time.perf_counter()
        load("text_to_sql")
        times.append(time.perf_counter() - began)
    assert min(times) < 0.1


def test_a_false_that_means_off_is_told_so() -> None:
    text = "sources: [a.jsonl]\nbase: b\ncleaning:\n  personal_data: {action: false}\n"
    with pytest.raises(UserError, match=r"x.yaml:4: (?s:.*)did you mean 'off'\?"):
        parse(text, "x.yaml")
