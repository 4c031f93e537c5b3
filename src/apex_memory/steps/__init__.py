"""The steps that `flows` and the direct path sequence, each safe to run again: batches of events, and upkeep.

`batches` holds claim, prepare, publish and give_up; `direct` runs them in a plain loop, without Temporal.
`upkeep` holds what runs by the clock: sweep and collect.
"""
