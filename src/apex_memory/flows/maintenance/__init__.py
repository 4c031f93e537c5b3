"""Scheduled and manual maintenance: sweep, collect, reconcile, and the smoke test."""
