"""Engines for the fault tests; see tests/conftest.py for the others."""

from __future__ import annotations

from tests.e2e.conftest import own_vectors_url

__all__ = ["own_vectors_url"]
