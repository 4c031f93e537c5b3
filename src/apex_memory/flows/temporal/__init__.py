"""The connection to Temporal: client, task queues, search attributes, worker deployments, errors, heartbeats."""
