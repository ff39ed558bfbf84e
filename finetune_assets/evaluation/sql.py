"""Execution accuracy of SQL: a query is right if it returns what the reference query returns.

Queries written by a model are untrusted. They run on an in-memory SQLite database that they can
only read, with bounds on work and on the size of values. Nothing a query can do changes the
database, so one database serves all queries.
"""

import contextlib
import math
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from finetune_assets.errors import UserError

MAX_VM_STEPS = 20_000_000
"""Virtual machine instructions of one query, under a second; more is a query gone wrong."""
MAX_SECONDS = 5.0
"""Time of one query: steps that move large values are slow, and fill the disk with what they
sort."""
VM_STEPS_BETWEEN_CHECKS = 1_000
MAX_VALUE_BYTES = 1_000_000
"""Size of one text, blob or row: a query cannot exhaust memory with `zeroblob`."""
MAX_ROWS = 100_000
"""Rows that a reference may return."""
RELATIVE_TOLERANCE = 1e-9
"""Floats closer than this are equal: sums in another order differ in the last digits."""

READ_ACTIONS = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
"""All that a query may do, per SQLite's authorizer; `load_extension` is a function, and refused."""
SQL_NOISE = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]
        | --[^\n]* | /\*.*?(?:\*/|\Z)""",
    re.VERBOSE | re.DOTALL,
)
"""Literals, quoted names and comments: where a keyword or a parenthesis means nothing."""
ORDER_BY_OR_PARENTHESIS = re.compile(r"[()]|\border\s+by\b", re.IGNORECASE)

ResultRow = tuple[Any, ...]


class _Refused(Exception):
    """A query that cannot be answered; the message says why."""


def score_queries(
    outputs: Sequence[str], references: Sequence[str], script: str
) -> list[str | None]:
    """Return for each row None if output and reference give equal results, else what is wrong.

    Results are equal as multisets of rows, or as sequences if the reference has a top-level
    ORDER BY. Column names do not matter; column counts do. A UserError tells of a script that
    builds no database, or of a reference that does not run, with its row (from 0) and SQL.
    """
    with contextlib.closing(_build_database(script)) as connection:
        return [
            _compare(connection, row, output, reference)
            for row, (output, reference) in enumerate(zip(outputs, references, strict=True))
        ]


def _build_database(script: str) -> sqlite3.Connection:
    """Run the script in an empty in-memory database, then close it to anything but reading."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    try:
        connection.executescript(script)
    except sqlite3.Error as error:
        connection.close()
        cause = f"the SQL script does not build a database: {error}"
        remedy = "find the statement with `sqlite3 :memory: < SCRIPT` and correct it"
        raise UserError("metric sql_execution, `database`", cause, remedy) from error
    # These make their tables at first use, which the authorizer would refuse.
    connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").close()
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.set_authorizer(_authorize)
    return connection


def _authorize(action: int, _first: str | None, second: str | None, *_: str | None) -> int:
    allowed = action in READ_ACTIONS and not (
        action == sqlite3.SQLITE_FUNCTION and (second or "").lower() == "load_extension"
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _compare(connection: sqlite3.Connection, row: int, output: str, reference: str) -> str | None:
    try:
        expected, width = _run(connection, reference, MAX_ROWS)
        if len(expected) > MAX_ROWS:
            raise _Refused(f"more than {MAX_ROWS:,} rows")
    except _Refused as error:
        where = f"metric sql_execution, reference of row {row}"
        cause = f"{error}, in the query: {reference}"
        remedy = "correct the row, or the script that builds the database"
        raise UserError(where, cause, remedy) from error
    try:
        actual, actual_width = _run(connection, output, len(expected))
    except _Refused as error:
        return str(error)
    if actual_width != width:
        return f"columns: {actual_width} instead of {width}"
    if len(actual) > len(expected):
        return f"rows: more than {len(expected)}"
    if len(actual) < len(expected):
        return f"rows: {len(actual)} instead of {len(expected)}"
    expected, actual = _merge_close_floats(expected, actual)
    if Counter(expected) != Counter(actual):
        return "other rows than the reference"
    if has_top_level_order_by(reference) and expected != actual:
        return "the rows of the reference in another order"
    return None


def _run(connection: sqlite3.Connection, query: str, max_rows: int) -> tuple[list[ResultRow], int]:
    """Rows and column count of one SELECT; at most `max_rows` + 1 rows, enough to see an excess."""
    checks_left = MAX_VM_STEPS // VM_STEPS_BETWEEN_CHECKS
    deadline = time.monotonic() + MAX_SECONDS
    stopped = False

    def stop() -> bool:
        nonlocal checks_left, stopped
        checks_left -= 1
        stopped = checks_left < 0 or time.monotonic() > deadline
        return stopped

    connection.set_progress_handler(stop, VM_STEPS_BETWEEN_CHECKS)
    try:
        cursor = connection.execute(query)
        if cursor.description is None:
            raise _Refused("not a SELECT statement")
        return cursor.fetchmany(max_rows + 1), len(cursor.description)
    # Python 3.11 raises sqlite3.Warning for a second statement, ValueError for text that is not
    # valid Unicode; both are the query's own fault.
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        if stopped:
            limits = f"{MAX_VM_STEPS:,} steps of SQLite or {MAX_SECONDS:g} seconds"
            raise _Refused(f"stopped after {limits}") from error
        raise _Refused(str(error)) from error


def has_top_level_order_by(query: str) -> bool:
    """Whether the outermost SELECT is ordered; ORDER BY in a subquery or window does not count."""
    depth = 0
    for match in ORDER_BY_OR_PARENTHESIS.finditer(SQL_NOISE.sub(" ", query)):
        change = {"(": 1, ")": -1}.get(match.group(), 0)
        if not change and depth == 0:
            return True
        depth += change
    return False


def _merge_close_floats(
    first: list[ResultRow], second: list[ResultRow]
) -> tuple[list[ResultRow], list[ResultRow]]:
    """Both results with close numbers made equal, in every column that holds a float.

    Rows can then be compared, counted and hashed as they are. Columns of integers stay exact.
    """
    columns = list(zip(*first, *second, strict=True))
    for i, column in enumerate(columns):
        if any(isinstance(value, float) for value in column):
            stand_in = _stand_ins({v for v in column if isinstance(v, int | float)})
            columns[i] = tuple(stand_in.get(value, value) for value in column)
    rows = list(zip(*columns, strict=True))
    return rows[: len(first)], rows[len(first) :]


def _stand_ins(numbers: set[float]) -> dict[float, float]:
    """For each number the smallest number of its run of close numbers."""
    stand_in: dict[float, float] = {}
    smallest = math.nan
    for number in sorted(numbers):
        if not math.isclose(number, smallest, rel_tol=RELATIVE_TOLERANCE):
            smallest = number
        stand_in[number] = smallest
    return stand_in
