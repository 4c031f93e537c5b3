"""Simulator: Front, the shared inbox."""
