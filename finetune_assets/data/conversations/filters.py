"""The `filter:` of a source: an SQL condition over the columns of its rows."""

from collections.abc import Mapping, Sequence

import polars as pl

from finetune_assets.catalog.sources import Source
from finetune_assets.errors import UserError

REMEDY = (
    "write an SQL condition over the row's columns, e.g. `score >= 3`; "
    "where cells are text, as in CSV, `CAST(score AS INT) >= 3`"
)


def filter_columns(source: Source, where: str) -> list[str]:
    """Return the columns that the source's condition reads; UserError if it is no SQL."""
    if source.filter is None:
        return []
    names = _expression(source.filter, where).meta.root_names()
    if not names:
        raise UserError(where, f"the condition `{source.filter}` reads no column", REMEDY)
    return names


def passes(condition: str, rows: Sequence[Mapping[str, object]], where: str) -> list[bool]:
    """Return whether the condition holds for each row; null, as of a missing column, is no."""
    if not rows:
        return []
    expression = _expression(condition, where)
    names = expression.meta.root_names()
    try:
        read = [{name: row.get(name) for name in names} for row in rows]
        frame = pl.DataFrame(read, infer_schema_length=None, strict=False)
        verdicts = frame.select(expression.cast(pl.Boolean).fill_null(False)).to_series().to_list()
    except (pl.exceptions.PolarsError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(where, f"the condition `{condition}` fails: {first}", REMEDY) from error
    if len(verdicts) != len(rows):
        raise UserError(where, f"the condition `{condition}` is not about single rows", REMEDY)
    return verdicts


def _expression(condition: str, where: str) -> pl.Expr:
    try:
        return pl.sql_expr(condition)
    except pl.exceptions.PolarsError as error:
        first = str(error).splitlines()[0]
        raise UserError(where, f"the condition `{condition}` fails: {first}", REMEDY) from error
