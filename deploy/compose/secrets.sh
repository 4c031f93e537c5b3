#!/bin/sh
# Make the secrets of the Compose project, once: a file each, in ./secrets, which only its owner can enter.
#   ./secrets.sh [neo4j|falkordb] [qdrant|edge]
# Existing passwords stay; the addresses of graph and vectors are written anew, so that the engines can be changed.
# Containers run as users of their own, so the files are readable, and the folder above them is closed.
set -eu
graph=${1:-neo4j} vectors=${2:-qdrant}
cd "$(dirname "$0")"
umask 022
mkdir -p secrets
chmod 700 secrets
cd secrets

# 24 random bytes in hexadecimal: they need no encoding in a URL or a configuration file.
random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
base64url() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; }
once() { [ -s "$1" ] || printf '%s\n' "$2" >"$1"; }

for name in postgres_password apex_db_password temporal_db_password cache_password graph_password qdrant_api_key edge_password grafana_password; do
  once "$name" "$(random 24)"
done
once admin_key "apex_$(random 6)_$(base64url)"
once secret_keys "$(head -c 32 /dev/urandom | base64)"

printf 'postgresql://apex:%s@postgres:5432/apex\n' "$(cat apex_db_password)" >documents
printf 'redis://:%s@valkey:6379/0\n' "$(cat cache_password)" >cache
printf 'requirepass %s\n' "$(cat cache_password)" >cache.conf
printf 'requirepass %s\n' "$(cat graph_password)" >falkordb.conf
printf 'neo4j/%s\n' "$(cat graph_password)" >neo4j_auth
printf 'service:\n  api_key: "%s"\n' "$(cat qdrant_api_key)" >qdrant.yaml
case $graph in
  neo4j) printf 'bolt://neo4j:%s@neo4j:7687/neo4j\n' "$(cat graph_password)" >graph ;;
  falkordb) printf 'falkordb://:%s@falkordb:6379/apex\n' "$(cat graph_password)" >graph ;;
  *) echo "$graph: the graph is neo4j or falkordb" >&2; exit 2 ;;
esac
case $vectors in
  qdrant) echo 'http://qdrant:6333/apex' >vectors ;;
  edge) printf 'edge://:%s@vectors:8463\n' "$(cat edge_password)" >vectors ;;
  *) echo "$vectors: the vectors are in qdrant or edge" >&2; exit 2 ;;
esac
echo "secrets/ is complete, for $graph and $vectors. Set COMPOSE_PROFILES=$graph,$vectors,monitoring in .env."
