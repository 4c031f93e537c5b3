#!/bin/sh
# What the entry point of the image `neo4j` does with the variables of the Compose file: the first password, and memory.
set -eu
classpath="/opt/neo4j/lib/*:/opt/neo4j"
export NEO4J_HOME=/tmp/neo4j NEO4J_CONF=/tmp/neo4j/conf
mkdir -p "$NEO4J_CONF"
echo "server.directories.data=/data/data" >"$NEO4J_CONF/neo4j.conf"
if [ ! -d /data/data/databases ]; then
  authentication=$(cat "$NEO4J_AUTH_FILE")
  java -XX:TieredStopAtLevel=1 -cp "$classpath" org.neo4j.cli.AdminTool dbms set-initial-password "${authentication#neo4j/}"
fi
exec java -Xms"$NEO4J_server_memory_heap_initial__size" -Xmx"$NEO4J_server_memory_heap_max__size" \
  -cp "$classpath" Neo4jServer /data 7687 0.0.0.0
