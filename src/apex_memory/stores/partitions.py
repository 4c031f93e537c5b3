"""The partitions of the table `readings`: one a day, in UTC."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import psycopg

DAYS = """SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = to_regclass('readings') ORDER BY 1"""
"""Returns the days that have a partition, in order."""


def partition_name(day: date) -> str:
    return f"readings_{day:%Y%m%d}"


async def create_partition(connection: psycopg.AsyncConnection[Any], day: date) -> None:
    """Create a day's partition apart and attach it: creating it in place would wait for all who use the table."""
    name = partition_name(day)
    statements = (
        f"CREATE TABLE {name} (LIKE readings INCLUDING ALL)",
        f"""ALTER TABLE readings ATTACH PARTITION {name}
            FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')""",
    )
    for statement in statements:
        await connection.execute(statement.encode())
