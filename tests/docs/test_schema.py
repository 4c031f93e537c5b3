"""Migrations from zero give the schema that docs/reference/schema.md describes. UPDATE=1 writes the page anew."""

from __future__ import annotations

import os
from pathlib import Path

from apex_memory.stores.postgres import Postgres
from apex_memory.stores.schema import migrate, migrations

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "schema.md"
HEADER = "<!-- Generated from the migrations: `UPDATE=1 pytest tests/docs/test_schema.py`. -->\n\n# Database schema\n"
COLUMNS = """
SELECT c.relname AS "table", a.attname AS "column", format_type(a.atttypid, a.atttypmod) AS type,
       a.attnotnull AS required, coalesce(pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, '') AS value
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace ORDER BY c.relname, a.attnum"""
INDEXES = "SELECT tablename AS \"table\", indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY tablename, indexname"
CHECKS = """
SELECT conrelid::regclass::text AS "table", pg_get_constraintdef(oid) AS definition FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f') ORDER BY 1, conname"""


async def page_of(db: Postgres) -> str:
    columns, indexes, checks = (
        await db.fetch(COLUMNS),
        await db.fetch(INDEXES),
        await db.fetch(CHECKS),
    )
    lines = [HEADER]
    for table in dict.fromkeys(row["table"] for row in columns):
        lines += [f"\n## {table}\n", "| Column | Type | Required | Value |", "|---|---|---|---|"]
        lines += [
            f"| `{row['column']}` | {row['type']} | {'yes' if row['required'] else ''} | {_code(row['value'])} |"
            for row in columns
            if row["table"] == table
        ]
        rules = [row["indexdef"] for row in indexes if row["table"] == table]
        rules += [row["definition"] for row in checks if row["table"] == table]
        lines += ["", *(f"- `{rule}`" for rule in rules)]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{' '.join(text.split())}`" if text else ""


async def test_migrations_from_zero_give_the_documented_schema(database_url: str) -> None:
    db = Postgres(database_url)
    await db.open()
    try:
        page = await page_of(db)
    finally:
        await db.close()
    if os.environ.get("UPDATE"):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "UPDATE=1 writes it anew"
    assert await migrate(database_url) == [], "nothing is left to apply"
    assert [name for name, _ in migrations()] == sorted(name for name, _ in migrations())
