"""Temporal, kept thin: it decides what runs when, and shows it. What a step does is in `app`.

`python -m apex_memory.flows` is the worker. Histories hold ids and counts, never bodies or secrets.
All state is in PostgreSQL: any workflow here may be ended at any time, and nothing is lost.
"""
