"""The Enhanced Saga: four databases change as one. docs/discussions/protocol.md argues each step.

`publication` carries a batch from manifests to a flip; `journal` holds the transactions that make it
so; `sweeper`, `collector` and `recovery` put right what crashes and outages leave behind.
"""
