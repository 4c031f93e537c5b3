#!/bin/sh
# Bring Temporal's two databases up to the schema of the server's version. Runs before each start of a server.
# Variables: POSTGRES_HOST, TEMPORAL_DB_PASSWORD_FILE, SCHEMA (folder of the versioned schemas).
set -eu
SQL_PASSWORD=$(cat "$TEMPORAL_DB_PASSWORD_FILE")
export SQL_PASSWORD
for database in temporal temporal_visibility; do
  folder=${database#temporal_}
  tool="temporal-sql-tool --plugin postgres12 --ep ${POSTGRES_HOST:-postgres} -p 5432 -u temporal --db $database"
  # Version 0.0 makes the table of versions; where it exists, this changes nothing.
  $tool setup-schema -v 0.0
  $tool update-schema -d "${SCHEMA:-/etc/temporal/schema}/postgresql/v12/$folder/versioned"
done
