#!/bin/sh
# Create the namespace of Apex, where it is missing. The worker adds its search attributes by itself.
# Variables: TEMPORAL_ADDRESS, NAMESPACE, RETENTION.
set -eu
namespace=${NAMESPACE:-apex}
temporal operator namespace describe --namespace "$namespace" >/dev/null 2>&1 ||
  temporal operator namespace create --namespace "$namespace" --retention "${RETENTION:-72h}"
