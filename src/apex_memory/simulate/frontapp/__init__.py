"""Simulator of Front, the shared inbox."""
