"""The gradual rollout of traffic and code: which share of the documents goes which way, and what each way makes of an event.

`shadow_*` processes copies of events into stages that no reader sees, and compares them (docs/adr/009-shadow-stages.md).
Nothing here knows Temporal: a rollout is decided and rolled back with PostgreSQL alone.
"""
