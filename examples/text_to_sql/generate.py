"""Make the text-to-SQL sample: questions, schemas, queries, and the database that proves them.

    python examples/text_to_sql/generate.py [--seed 7] [--out FOLDER]

The same seed gives the same bytes. Every query is executed on SQLite; one whose result is empty,
or which its filter does not change, is drawn again.
"""

import argparse
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import DOMAINS, Domain, Table

ROWS_PER_TABLE = 16
SEEN_PER_SHAPE = 54
SEEN_PER_JOIN = 100
"""Joins are what the model finds hard."""
UNSEEN_PER_SHAPE = 5
ATTEMPTS = 4000
"""Draws for a shape before the generator gives up on filling its quota."""

Question = tuple[str, str]
"""Question and query."""


def cells(table: Table, rng: random.Random) -> list[dict[str, object]]:
    """Rows of a table; numbers within a column differ, so that an ordering has no ties."""
    columns: dict[str, list[object]] = {"id": list(range(1, ROWS_PER_TABLE + 1))}
    for name, values in table.words.items():
        long = len(values) >= ROWS_PER_TABLE
        drawn = (
            rng.sample(values, ROWS_PER_TABLE) if long else rng.choices(values, k=ROWS_PER_TABLE)
        )
        columns[name] = list(drawn)
    for name, (low, high) in table.numbers.items():
        columns[name] = list(rng.sample(range(low, high + 1), ROWS_PER_TABLE))
    if table.refers_to:
        columns[f"{table.refers_to}_id"] = list(
            rng.choices(range(1, ROWS_PER_TABLE + 1), k=ROWS_PER_TABLE)
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def script(rng: random.Random) -> str:
    """SQL that creates and fills every table."""
    statements = []
    for domain in DOMAINS:
        for table in (domain.parent, domain.child):
            kinds = ["id INTEGER PRIMARY KEY"]
            kinds += [f"{name} TEXT" for name in table.words]
            kinds += [f"{name} INTEGER" for name in table.numbers]
            if table.refers_to:
                kinds.append(f"{table.refers_to}_id INTEGER REFERENCES {domain.parent.name}(id)")
            statements.append(f"CREATE TABLE {table.name} ({', '.join(kinds)});")
            for row in cells(table, rng):
                values = ", ".join(repr(v) for v in row.values())
                statements.append(f"INSERT INTO {table.name} VALUES ({values});")
    return "\n".join(statements) + "\n"


class Draw:
    """Random parts of a question about one domain."""

    def __init__(self, domain: Domain, database: sqlite3.Connection, rng: random.Random) -> None:
        self.domain, self.database, self.rng = domain, database, rng
        self.table = rng.choice((domain.parent, domain.child))
        self.number = rng.choice(list(self.table.numbers))
        self.label = next(iter(self.table.words))
        self.category = list(self.table.words)[1]

    def pick(self, *options: str) -> str:
        return self.rng.choice(options)

    def values(self, table: Table, column: str) -> list[Any]:
        rows = self.database.execute(f"SELECT DISTINCT {column} FROM {table.name} ORDER BY 1")
        return [row[0] for row in rows]

    def value(self, table: Table, column: str) -> object:
        return self.rng.choice(self.values(table, column))


def equal(d: Draw) -> Question:
    t, v = d.table.name, d.value(d.table, d.category)
    shown = d.rng.choice([c for c in (*d.table.words, *d.table.numbers) if c != d.category])
    text = d.pick(
        f"Show the {shown} of {t} where {d.category} is {v}.",
        f"List the {shown} of all {t} with {d.category} {v}.",
        f"What is the {shown} of the {t} whose {d.category} is {v}?",
    )
    return text, f"SELECT {shown} FROM {t} WHERE {d.category} = '{v}';"


def compare(d: Draw) -> Question:
    t, v = d.table.name, d.value(d.table, d.number)
    word, sign = d.rng.choice([("above", ">"), ("below", "<"), ("over", ">"), ("under", "<")])
    text = d.pick(
        f"Show the {d.label} of {t} with {d.number} {word} {v}.",
        f"Which {t} have {d.number} {word} {v}? Give the {d.label}.",
    )
    return text, f"SELECT {d.label} FROM {t} WHERE {d.number} {sign} {v};"


def between(d: Draw) -> Question:
    low, high = sorted(d.rng.sample(d.values(d.table, d.number), 2))
    t = d.table.name
    text = d.pick(
        f"Show the {d.label} of {t} with {d.number} between {low} and {high}.",
        f"List the {d.label} of {t} whose {d.number} is from {low} to {high}.",
    )
    return text, f"SELECT {d.label} FROM {t} WHERE {d.number} BETWEEN {low} AND {high};"


def count(d: Draw) -> Question:
    t, v = d.table.name, d.value(d.table, d.category)
    text = d.pick(
        f"How many {t} have {d.category} {v}?", f"Count the {t} where {d.category} is {v}."
    )
    return text, f"SELECT COUNT(*) FROM {t} WHERE {d.category} = '{v}';"


def aggregate(d: Draw) -> Question:
    t = d.table.name
    word, name = d.rng.choice(
        [("average", "AVG"), ("total", "SUM"), ("highest", "MAX"), ("lowest", "MIN")]
    )
    text = d.pick(
        f"What is the {word} {d.number} of {t}?",
        f"Give the {word} {d.number} of all {t}.",
        f"Find the {word} {d.number} in {t}.",
    )
    return text, f"SELECT {name}({d.number}) FROM {t};"


def group(d: Draw) -> Question:
    t = d.table.name
    text = d.pick(
        f"How many {t} are there for each {d.category}?",
        f"Count the {t} per {d.category}.",
    )
    return text, f"SELECT {d.category}, COUNT(*) FROM {t} GROUP BY {d.category};"


def group_aggregate(d: Draw) -> Question:
    t = d.table.name
    word, name = d.rng.choice([("average", "AVG"), ("total", "SUM")])
    text = d.pick(
        f"What is the {word} {d.number} of {t} for each {d.category}?",
        f"Show the {word} {d.number} of {t} per {d.category}.",
    )
    return text, f"SELECT {d.category}, {name}({d.number}) FROM {t} GROUP BY {d.category};"


def extreme(d: Draw) -> Question:
    t = d.table.name
    word, order = d.rng.choice([("highest", "DESC"), ("lowest", "ASC")])
    text = d.pick(
        f"Show the {d.label} of the one in {t} with the {word} {d.number}.",
        f"Which {d.label} in {t} has the {word} {d.number}?",
    )
    return text, f"SELECT {d.label} FROM {t} ORDER BY {d.number} {order} LIMIT 1;"


def top(d: Draw) -> Question:
    t, n = d.table.name, d.rng.randint(2, 6)
    word, order = d.rng.choice([("highest", "DESC"), ("lowest", "ASC")])
    text = d.pick(
        f"Show the {d.label} of the {n} {t} with the {word} {d.number}.",
        f"List the {d.label} of the {n} {t} that have the {word} {d.number}.",
    )
    return text, f"SELECT {d.label} FROM {t} ORDER BY {d.number} {order} LIMIT {n};"


def distinct(d: Draw) -> Question:
    t = d.table.name
    text = d.pick(
        f"List the different {d.category} values of {t}.",
        f"Which different {d.category} values occur in {t}?",
        f"Show every distinct {d.category} of {t}.",
    )
    return text, f"SELECT DISTINCT {d.category} FROM {t};"


def _joined(d: Draw) -> tuple[str, str, str]:
    parent, child = d.domain.parent, d.domain.child
    key = f"{child.name}.{child.refers_to}_id"
    join = f"FROM {child.name} JOIN {parent.name} ON {key} = {parent.name}.id"
    return parent.name, child.name, join


def join(d: Draw) -> Question:
    parent, child, joined = _joined(d)
    left = d.rng.choice([*d.domain.child.words, *d.domain.child.numbers])
    right = d.rng.choice([*d.domain.parent.words, *d.domain.parent.numbers])
    text = d.pick(
        f"Show the {child} {left} together with the {parent} {right}.",
        f"For {child} and their {parent}, show the {left} and the {right}.",
    )
    return text, f"SELECT {child}.{left}, {parent}.{right} {joined};"


def join_filter(d: Draw) -> Question:
    parent, child, joined = _joined(d)
    left = d.rng.choice([*d.domain.child.words, *d.domain.child.numbers])
    right = list(d.domain.parent.words)[1]
    v = d.value(d.domain.parent, right)
    text = d.pick(
        f"Show the {child} {left} where the {parent} {right} is {v}.",
        f"For {child} whose {parent} have {right} {v}, show the {left}.",
    )
    return text, f"SELECT {child}.{left} {joined} WHERE {parent}.{right} = '{v}';"


SHAPES: dict[str, Callable[[Draw], Question]] = {
    f.__name__: f
    for f in (
        equal,
        compare,
        between,
        count,
        aggregate,
        group,
        group_aggregate,
        extreme,
        top,
        distinct,
        join,
        join_filter,
    )
}


def tells_something(database: sqlite3.Connection, query: str, tables: list[Table]) -> bool:
    """Whether the result is neither empty, nor null, nor what it would be without the filter."""
    rows = database.execute(query).fetchall()
    if not rows or any(cell is None for row in rows for cell in row):
        return False
    if " WHERE " not in query:
        return True
    without = query[: query.index(" WHERE ")]
    if "COUNT" in query:
        return rows[0][0] > 0 and rows != database.execute(without).fetchall()
    return len(rows) < len(database.execute(without).fetchall())


def questions(database: sqlite3.Connection, rng: random.Random) -> list[dict[str, object]]:
    """Rows of the sample; no question occurs twice."""
    rows, asked = [], set()
    for seen in (True, False):
        domains = [d for d in DOMAINS if d.seen == seen]
        for shape, ask in SHAPES.items():
            made, quota = 0, UNSEEN_PER_SHAPE
            if seen:
                quota = SEEN_PER_JOIN if shape.startswith("join") else SEEN_PER_SHAPE
            for attempt in range(ATTEMPTS):
                if made == quota:
                    break
                domain = domains[attempt % len(domains)]
                question, query = ask(Draw(domain, database, rng))
                tables = [domain.child, domain.parent]
                if question.casefold() in asked or not tells_something(database, query, tables):
                    continue
                asked.add(question.casefold())
                made += 1
                rng.shuffle(tables)
                rows.append(
                    {
                        "instruction": question,
                        "input": "\n".join(t.schema for t in tables),
                        "output": query,
                        "tables": "seen" if seen else "unseen",
                        "shape": shape,
                        "split": None if seen else "test",
                    }
                )
    rng.shuffle(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    text = script(rng)
    database = sqlite3.connect(":memory:")
    database.executescript(text)
    rows = questions(database, rng)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "database.sql").write_text(text)
    with (options.out / "questions.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    shapes = len(SHAPES)
    tables = 2 * len(DOMAINS)
    print(f"{len(rows)} questions of {shapes} shapes over {tables} tables in {options.out}")


if __name__ == "__main__":
    main()
