"""Spooling: whole files or none, in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.spool import spool
from finetune_assets.errors import UserError
from finetune_assets_tests.data.sources.spooling import WHERE

MEASURE = """
import sys, adbc_driver_postgresql.dbapi, pyarrow, polars
from pathlib import Path
from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.spool import spool

def peak() -> int:  # of this process alone, unlike ru_maxrss
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

before = peak()
spool(Source(query=sys.argv[1], connection=sys.argv[2]), Path(sys.argv[3]), "here")
print(peak() - before)
"""


def test_a_failure_leaves_the_last_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("def rows(n):\n    yield {'n': n}\n    1 / n\n")
    target = tmp_path / "out.jsonl"
    spool(Source(function="half:rows", arguments={"n": 1}), target, WHERE, tmp_path)
    with pytest.raises(UserError, match="division by zero"):
        spool(Source(function="half:rows", arguments={"n": 0}), target, WHERE, tmp_path)
    assert target.read_text() == '{"n":1}\n'
    assert [path.name for path in tmp_path.glob("out*")] == ["out.jsonl"]


def test_memory_stays_bounded(postgres: str, tmp_path: Path) -> None:
    query = "SELECT i, repeat(md5(i::text), 64) AS text FROM generate_series(1, 200000) AS i"
    target = tmp_path / "big.jsonl"
    command = [sys.executable, "-c", MEASURE, query, postgres, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert target.stat().st_size > 400e6
    assert int(done.stdout) < 300
