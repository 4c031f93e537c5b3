"""The HTTP API: takes in webhooks and documents, and serves search and operations. `python -m apex_memory.gateway` runs it."""

from apex_memory.gateway.application import create_app

__all__ = ["create_app"]
