#!/bin/sh
# Create the namespace of Apex, where it is missing. The worker adds its search attributes by itself.
# It waits long, because a server that has just started is slow, and because on a network without a way out Docker may let a
# look-up of gRPC (the TXT record of the server's name) run into its time limit of 20 seconds.
# Variables: TEMPORAL_ADDRESS, NAMESPACE, RETENTION.
set -eu
namespace=${NAMESPACE:-apex}
namespaces() { temporal operator namespace "$@" --client-connect-timeout 60s --command-timeout 120s --namespace "$namespace"; }
namespaces describe >/dev/null 2>&1 || namespaces create --retention "${RETENTION:-72h}"
