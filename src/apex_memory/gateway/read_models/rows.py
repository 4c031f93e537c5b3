"""Rows of one statement as objects of a class, so that the type checker knows their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString, TypeVar

from psycopg.rows import class_row

from apex_memory.stores.postgres import Postgres

Row = TypeVar("Row")


async def fetch_rows(
    db: Postgres,
    row_type: type[Row],
    query: LiteralString,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
) -> list[Row]:
    """Return all rows of one statement, which is a transaction of its own. Each column is a field of `row_type`."""
    async with (
        db.connection() as connection,
        connection.cursor(row_factory=class_row(row_type)) as cursor,
    ):
        await cursor.execute(query, parameters)
        return await cursor.fetchall()
