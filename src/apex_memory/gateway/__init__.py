"""HTTP: the way in for vendors and agents, and the way to ask. `python -m apex_memory.gateway` runs it."""

from apex_memory.gateway.application import create_app

__all__ = ["create_app"]
