"""Row groups cleaned by several processes make the corpus that one process makes."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from finetune_assets.data.corpora import parts
from finetune_assets.errors import UserError
from finetune_assets.storage import parquet
from finetune_assets_tests.data.data import Corpus, Rows, corpus, write_jsonl


def rows() -> Rows:
    made = [{"prompt": f"question {i} of many", "completion": f"a {i}"} for i in range(200)]
    made[50] = {"prompt": "empty", "completion": ""}
    made[150] = made[3]
    made[199] = {**made[7], "prompt": made[7]["prompt"].upper()}
    return made


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 30 rows."""
    from finetune_assets.data.sources import files

    monkeypatch.setattr(files, "BATCH_ROWS", 10)
    monkeypatch.setattr(parquet, "ROW_GROUP", 30)


def test_processes_change_nothing(tmp_path: Path, small_groups: None) -> None:
    processes = corpus(tmp_path, rows())
    assert parquet.row_groups(processes.folder / "raw" / "rows.parquet") == 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MOST_PROCESSES", 1)
        alone = corpus(tmp_path, rows())
    for name in ("rows", "rejected", "near_duplicates"):
        ours, theirs = (
            pl.read_parquet(made.folder / "corpus" / f"{name}.parquet").drop(
                "source", "reason", strict=False
            )
            for made in (processes, alone)
        )
        assert ours.equals(theirs), name
    assert processes.rows["line"].to_list() == [n for n in range(1, 201) if n not in (51, 151)]
    assert processes.rows_hash == alone.rows_hash
    assert sorted(processes.rejected["line"].to_list()) == [51, 151]


def test_errors_of_a_process_are_those_of_the_row(tmp_path: Path, small_groups: None) -> None:
    with pytest.raises(UserError, match=r"jsonl:51: empty answer.*1 of 200"):
        corpus(tmp_path, rows(), max_rejected=0)


def test_a_killed_process_is_one_clear_error(
    tmp_path: Path, small_groups: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_clean_part", _die)
    with pytest.raises(UserError, match="ended abruptly"):
        corpus(tmp_path, rows())


def _die(*_: object) -> None:
    os._exit(9)


def test_no_environment_is_left_changed(tmp_path: Path, small_groups: None) -> None:
    before = json.dumps(dict(os.environ), sort_keys=True)
    corpus(tmp_path, rows())
    assert json.dumps(dict(os.environ), sort_keys=True) == before


def test_a_file_named_twice_is_kept_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows()[:9])
    made = Corpus(tmp_path, [str(path), str(path)])
    assert (made.rows.height, made.rejected.height) == (9, 9)
