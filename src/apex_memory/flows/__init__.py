"""Workflows on Temporal, which decides what runs when and shows it. The steps themselves are in `app`.

`python -m apex_memory.flows` is the worker. Histories hold ids and counts, never bodies or secrets.
All state is in PostgreSQL: any workflow may be terminated at any time, and nothing is lost.
"""
