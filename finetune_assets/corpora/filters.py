"""The `filter:` of a source: an SQL condition over the columns of its rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from finetune_assets.errors import UserError


def passes(condition: str, rows: Sequence[Mapping[str, Any]], where: str) -> list[bool]:
    """Whether the condition holds for each row; null is no.

    Raises:
        UserError: the condition is no SQL, or does not fit the columns.
    """
    try:
        expression = pl.sql_expr(condition)
        names = expression.meta.root_names()
        unknown = [n for n in names if rows and not any(n in row for row in rows)]
        if unknown:
            raise UserError(
                where,
                f"the condition `{condition}` names '{unknown[0]}', which no row has",
                f"the rows have {', '.join(rows[0])}",
            )
        frame = pl.DataFrame(
            [{n: row.get(n) for n in names} for row in rows], infer_schema_length=None, strict=False
        )
        return frame.select(expression.fill_null(False)).to_series().to_list()
    except pl.exceptions.PolarsError as error:
        raise UserError(
            where,
            f"the condition `{condition}` fails: {error}",
            "write an SQL condition over the row's columns, e.g. `score >= 3`",
        ) from error
