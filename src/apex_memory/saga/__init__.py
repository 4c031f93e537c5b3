"""The Enhanced Saga: four databases change as one. docs/discussions/protocol.md argues each step.

`publication` takes a batch from manifests to the flip, and `journal` holds its transactions. `failures` decides
what happens to an event that could not go on. `sweeper`, `collector` and `recovery` repair what crashes and
outages leave behind.
"""
