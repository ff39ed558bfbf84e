"""Scores are what the published definitions say, and a model's SQL can do nothing but read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_assets.errors import UserError
from finetune_assets.evaluation import sql
from finetune_assets.evaluation.metrics import METRIC_NAMES, RowScore, mean, score
from finetune_assets.evaluation.sql import has_top_level_order_by

SHOP = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, city TEXT, amount REAL, placed INTEGER);
INSERT INTO orders VALUES (1, 'Oslo', 0.1, 1700000000), (2, 'Oslo', 0.2, 1700000001),
    (3, 'Bergen', 0.3, 1700000002), (4, 'Bergen', 0.3, 1700000002);
"""


def values(name: str, output: str, reference: str) -> float:
    [row] = score(name, [output], [reference])
    return row.score


def run_sql(output: str, reference: str) -> RowScore:
    [row] = score("sql_execution", [output], [reference], sql_script=SHOP)
    return row


def test_exact_match_forgives_outer_whitespace_and_unicode_form_only() -> None:
    assert values("exact_match", "  caf\u00e9\n", "cafe\u0301") == 1
    assert values("exact_match", "Café", "café") == 0
    assert values("exact_match", "a  b", "a b") == 0


def test_rouge_l_equals_the_library_on_ascii_and_reads_other_scripts() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    output, reference = "The cat sat on a mat, twice.", "A cat sat on the mat - once!"
    expected = RougeScorer(["rougeL"]).score(reference, output)["rougeL"].fmeasure
    assert 0 < expected < 1
    assert values("rouge_l", output, reference) == pytest.approx(expected)
    # Three of four words in common: precision and recall are both 3/4.
    assert values("rouge_l", "кот сидел на стуле", "кот сидел на столе") == pytest.approx(0.75)


def test_an_answer_without_words_has_a_score_of_the_same_type() -> None:
    """The library gives 0 and not 0.0, and a column of both types is none."""
    assert [type(row.score) for row in score("rouge_l", ["...", "a"], ["a", "a b"])] == [float] * 2


def test_chrf_equals_sacrebleu() -> None:
    import sacrebleu

    output, reference = "the cat sat", "the cat sits"
    expected = sacrebleu.sentence_chrf(output, [reference]).score / 100
    assert 0 < expected < 1
    assert values("chrf", output, reference) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l", "chrf"])
def test_equal_texts_score_one_even_without_words(metric: str) -> None:
    for text in ("same text", "", "+"):
        assert values(metric, text, text) == 1
    assert values(metric, "", "something") == 0


@pytest.mark.parametrize(
    ("output", "valid"),
    [
        (' {"a": [1, 2.5, null]}\n', True),
        ("7" * 5000, True),
        ('```json\n{"a": 1}\n```', False),
        ('{"a": 1} {"b": 2}', False),
        ('{"a": NaN}', False),
        ("[" * 200_000, False),
        ("", False),
    ],
)
def test_json_is_valid_only_as_a_whole(output: str, valid: bool) -> None:
    [row] = score("json_valid", [output], [""])
    assert row.score == valid
    assert (row.note is None) == valid


def test_sql_rows_count_as_a_multiset_unless_the_reference_orders_them() -> None:
    assert run_sql("SELECT id FROM orders ORDER BY id DESC", "SELECT id FROM orders").score == 1
    ordered = run_sql("SELECT id FROM orders", "SELECT id FROM orders ORDER BY id DESC;")
    assert ordered.score == 0
    assert "another order" in str(ordered.note)
    assert run_sql("SELECT DISTINCT city FROM orders", "SELECT city FROM orders").score == 0


def test_sql_column_names_do_not_matter_but_counts_do() -> None:
    assert run_sql("SELECT id AS x FROM orders", "SELECT id FROM orders").score == 1
    assert run_sql("SELECT 1, 2", "SELECT 1").note == "columns: 2 instead of 1"
    empty = run_sql("SELECT 1, 2 FROM orders WHERE 0", "SELECT 1 FROM orders WHERE 0")
    assert empty.score == 0


def test_sql_floats_are_equal_within_rounding_and_integers_exactly() -> None:
    # 0.1 + 0.2 is not 0.3 in binary; the close values stand in different rows of both results.
    close = "SELECT 0.1 + 0.2, 2 UNION ALL SELECT 0.3, 1"
    assert run_sql(close, "SELECT 0.3, 2 UNION ALL SELECT 0.1 + 0.2, 1").score == 1
    assert run_sql("SELECT 2.0", "SELECT 2").score == 1
    assert run_sql("SELECT 0.300001", "SELECT 0.3").score == 0
    assert run_sql("SELECT 1700000001", "SELECT 1700000000").score == 0
    assert run_sql("SELECT '2'", "SELECT 2").score == 0


@pytest.mark.parametrize(
    "attack",
    [
        "DELETE FROM orders",
        "DROP TABLE orders",
        "CREATE TEMP TABLE t AS SELECT 1",
        "INSERT INTO orders(city) VALUES ('x') RETURNING 1",
        "SELECT 1; DELETE FROM orders",
        "PRAGMA writable_schema = 1",
        "SELECT * FROM pragma_database_list",
        "ATTACH DATABASE 'stolen.db' AS other",
        "VACUUM INTO 'stolen.db'",
        "SELECT load_extension('evil')",
        "SELECT length(zeroblob(900000000))",
        "BEGIN",
        "-- nothing but a comment",
        "",
        "SELECT ?",
        "SELECT '\x00'",
        "SELECT '\ud800'",
        "I cannot answer that.",
    ],
)
def test_sql_that_does_more_than_read_scores_zero_and_changes_nothing(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    count = "SELECT COUNT(*) FROM orders"
    bad, good = score("sql_execution", [attack, "SELECT 4"], [count, count], sql_script=SHOP)
    assert bad.score == 0
    assert bad.note
    assert good.score == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("steps", "seconds"), [(100_000, 60.0), (10**12, 0.05)])
def test_sql_without_end_is_stopped_and_later_queries_run(
    steps: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "MAX_VM_STEPS", steps)
    monkeypatch.setattr(sql, "MAX_SECONDS", seconds)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n"
    bad, good = score("sql_execution", [endless, "SELECT 1"], ["SELECT 1"] * 2, sql_script=SHOP)
    assert str(bad.note).startswith("stopped after ")
    assert good.score == 1


def test_sql_may_use_functions_views_and_json() -> None:
    script = SHOP + "CREATE VIEW big AS SELECT * FROM orders WHERE amount > 0.15;"
    for query in (
        "SELECT COUNT(*) FROM big",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n LIMIT 3) SELECT MAX(i) FROM n",
        "SELECT value FROM json_each('[3]')",
        "SELECT ROUND(2.6) FROM orders LIMIT 1; -- done",
    ):
        [row] = score("sql_execution", [query], ["SELECT 3"], sql_script=script)
        assert row == RowScore(1.0), query


def test_sql_reads_no_more_rows_than_it_needs() -> None:
    # Rows without end: reading stops at one row more than the reference has.
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    assert run_sql(endless, "SELECT 1").note == "rows: more than 1"


def test_sql_reference_that_fails_is_an_error_with_its_row_and_query() -> None:
    with pytest.raises(UserError, match=r"row 1\b.*no such column: town.*SELECT town FROM orders"):
        score(
            "sql_execution",
            ["SELECT 1", "SELECT 1"],
            ["SELECT 1", "SELECT town FROM orders"],
            sql_script=SHOP,
        )


def test_sql_needs_a_script_that_builds_a_database() -> None:
    with pytest.raises(UserError, match="set `database`"):
        score("sql_execution", ["SELECT 1"], ["SELECT 1"])
    with pytest.raises(UserError, match='does not build a database: near "TABEL"'):
        score("sql_execution", ["SELECT 1"], ["SELECT 1"], sql_script="CREATE TABEL t(x);")


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n  by a limit 3;", True),
        ("SELECT a FROM t ORDER /* x */ BY a", True),
        ("WITH c AS (SELECT a FROM t) SELECT a FROM c UNION SELECT 1 ORDER BY 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT RANK() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'it''s (', \"order by\", [order by] FROM t -- ORDER BY a", False),
        ("SELECT ') ORDER BY (' FROM t /* ORDER BY", False),
    ],
)
def test_only_the_outermost_order_by_counts(query: str, ordered: bool) -> None:
    assert has_top_level_order_by(query) == ordered


def test_the_value_of_a_dataset_is_the_mean_of_its_rows() -> None:
    assert mean(score("exact_match", ["a", "b", "c", "d"], ["a", "b", "c", "x"])) == 0.75
    with pytest.raises(ValueError, match="no rows"):
        mean([])


def test_wrong_calls_are_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown metric 'bleu'; the metrics are exact_match, "):
        score("bleu", ["a"], ["a"])
    with pytest.raises(ValueError, match="1 outputs for 2 references"):
        score("exact_match", ["a"], ["a", "b"])


def test_names_are_light_to_import() -> None:
    code = (
        "import json, sys; from finetune_assets.evaluation import metrics; "
        "print(json.dumps([list(metrics.METRIC_NAMES), sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names, modules = json.loads(done.stdout)
    assert tuple(names) == METRIC_NAMES
    assert not {"torch", "sacrebleu", "rouge_score", "nltk", "numpy", "polars"} & set(modules)
